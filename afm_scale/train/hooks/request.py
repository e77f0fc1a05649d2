"""What a person asks of a run that goes on: an empty file of some name, put into its folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

LOOK_EVERY_SECONDS = 2.0  # a look at a file system that many nodes share is not free


class Request:
    """Looks for the file now and then. Each one that is put there is answered once, by every process that looks."""

    def __init__(self, path: Path, *, every_seconds: float = LOOK_EVERY_SECONDS) -> None:
        self._path = path
        self._every_seconds = every_seconds
        self._looked = -float("inf")
        self._answered: int | None = None  # when the one was made that was answered last

    def is_new(self) -> bool:
        """Whether there is one that this process has not answered yet; then it is held to be answered."""
        now = time.monotonic()
        if now - self._looked < self._every_seconds:
            return False
        self._looked = now
        try:
            made = os.stat(self._path).st_mtime_ns
        except OSError:  # mostly there is none
            return False
        if made == self._answered:
            return False
        self._answered = made
        return True

    def withdraw(self) -> None:
        """Removes the file, if it is still there."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError:  # it is answered all the same; the next process may answer it again
            pass
