"""The event log: what happened to a run, one JSON line each (starts, saves, signals, divergence)."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from ...core.errors import UserError
from ...core.files import append_regular, explained_write

_LONGEST = 2000  # letters of an error that are noted


class EventLog:
    """Appends to one file; only on the rank where it is enabled."""

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self._path = path
        self._enabled = enabled

    def write(self, kind: str, **fields: Any) -> None:
        """Appends {"time": ISO 8601 in UTC, "kind": kind, **fields}. Raises UserError if the file cannot be written."""
        if not self._enabled:
            return
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        with explained_write(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with append_regular(self._path) as file:
                _forget_torn_line(file)
                file.write((json.dumps({"time": time, "kind": kind, **fields}) + "\n").encode())

    def note_failure(self, error: BaseException | None, *, step: int) -> None:
        """The last word of a run that ends by an error: what a person was told. Nothing where it cannot be written."""
        if error is not None:
            with suppress(UserError):
                self.write("failed", step=step, why=str(error)[:_LONGEST] or type(error).__name__)


def _forget_torn_line(file: BinaryIO) -> None:
    """Cuts off what a kill left of a last line: joined to it, the next one could not be read either."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
