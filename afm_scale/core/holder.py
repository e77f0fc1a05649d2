"""The record of who holds a folder (`holding.py`): FOLDER/.held, one that beats."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from .files import open_descriptor, open_in_place
from .ranges import Range
from .typed import Mistake, build, to_mapping

RECORD_NAME = ".held"
_LARGEST_RECORD = 1 << 16
_RECORD_BYTES = 1024  # always the same, so that a beat writes over the whole of the last one


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a folder."""

    host: str
    kernel: str  # which start of which machine: host names need not differ
    device: int  # of the folder: one machine may have mounted it twice, without locks in common
    pid: Annotated[int, Range(1)]
    since: str  # ISO 8601, UTC
    ranks: Annotated[int, Range(1)]
    job: str  # as the scheduler calls it; empty where there is none
    token: str  # at random: one for every time that a folder is taken
    beats: Annotated[int, Range(0)] = 0

    def __str__(self) -> str:
        job = f", {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host} since {self.since} ({self.ranks} rank(s){job})"

    def shares_locks(self, other: Holder) -> bool:
        """Whether each is told of the other's lock for certain."""
        return (self.kernel, self.device) == (other.kernel, other.device)


class Seen(NamedTuple):
    """A record as it was once found; a beat changes it."""

    data: bytes
    modified: int


def look(record: Path) -> Seen | None:
    """Opens the file anew, for only then does NFS ask the server. None if there is no record."""
    try:
        descriptor = open_descriptor(record)
    except FileNotFoundError:
        return None
    try:
        return Seen(os.read(descriptor, _LARGEST_RECORD), os.fstat(descriptor).st_mtime_ns)
    finally:
        os.close(descriptor)


def holder_in(seen: Seen | None) -> Holder | None:
    """Who wrote a record; None if nobody can tell, because it is damaged or just being written."""
    try:
        return None if seen is None else build(Holder, json.loads(seen.data))
    except (Mistake, ValueError, RecursionError):
        return None


def create(record: Path, holder: Holder) -> bool:
    """Writes a record where there is none; whether there was none. Of several processes one is told so."""
    try:
        descriptor = open_in_place(record, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    _fill(descriptor, holder)
    return True


def overwrite(record: Path, holder: Holder) -> None:
    """Over the record that is there. In place: another host may keep a file's old name for longer than its contents."""
    _fill(open_in_place(record), holder)


def _fill(descriptor: int, holder: Holder) -> None:
    try:
        data = json.dumps(to_mapping(holder)).encode().ljust(_RECORD_BYTES - 1) + b"\n"
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def holder_of(folder: Path) -> tuple[Holder, float] | None:
    """Who says that it holds a folder, and when it last beat, by the clock of the file system (seconds since 1970).

    For people who watch: the record is left where the process was killed, and it decides nothing. None if there is no
    record, or none that can be read.
    """
    try:
        seen = look(folder / RECORD_NAME)
    except OSError:
        return None
    holder = holder_in(seen)
    return None if seen is None or holder is None else (holder, seen.modified / 1e9)
