"""torch's writer of shards, which takes the SHA-256 of every file beside writing it and lets system errors through."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem

from ..core.files import open_descriptor

_PIECE_BYTES = 2**24
PIECES_BEHIND = 16  # in memory at once


class Writer(dcp.FileSystemWriter):
    """Raises the operating system's error: torch wraps it in one of its own, and the wrapped one does not travel."""

    def __init__(self, folder: Path, beside: Executor, pieces_behind: int = PIECES_BEHIND) -> None:
        """`beside` takes the sums of what is written, `pieces_behind` pieces of 16 MiB behind at most."""
        super().__init__(folder, per_thread_copy_ahead=0)  # tensors are on the CPU already: no device stream
        self.fs = _SummingFileSystem(beside, pieces_behind)
        self.tensors: set[str] = set()  # the names of which this rank wrote something

    @property
    def sums(self) -> dict[str, str]:
        """SHA-256, in hex, of what this rank wrote, by the files' names."""
        return self.fs.sums

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Any:
        self.tensors = {item.index.fqn for item in plan.items}
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise system_error(error) or error from None

    def forget_cached(self) -> None:
        """What this rank wrote is read from the disk the next time, where the system lets a process ask for that."""
        for name in self.sums:
            descriptor = open_descriptor(Path(self.path) / name)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


class _SummingFileSystem(FileSystem):
    """Keeps the sums of the bytes that were handed over, which are not those that a bad disk gives back."""

    def __init__(self, beside: Executor, pieces_behind: int) -> None:
        self._beside, self._pieces_behind = beside, pieces_behind
        self.sums: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as file:
            summed = _Summed(file, self._beside, self._pieces_behind)
            yield summed
            self.sums[Path(path).name] = summed.sum()

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.sums[Path(new_path).name] = self.sums.pop(Path(path).name)


class _Summed:
    """A file that is written from its beginning to its end.

    Its sum is taken of copies, so that it may fall behind the writing and catch up while the disk is waited for.
    """

    def __init__(self, file: BinaryIO, beside: Executor, pieces_behind: int) -> None:
        self._file = file
        self._beside, self._pieces_behind = beside, pieces_behind
        self._behind: deque[Future[None]] = deque()
        self._sha = hashlib.sha256()
        self.tell, self.flush, self.fileno, self.close = file.tell, file.flush, file.fileno, file.close

    def write(self, content: Any) -> int:
        with memoryview(content).cast("B") as whole:
            for start in range(0, len(whole), _PIECE_BYTES):
                piece = whole[start:start + _PIECE_BYTES]
                if len(self._behind) >= self._pieces_behind:
                    self._behind.popleft().result()
                self._behind.append(self._beside.submit(self._sha.update, bytes(piece)))
                self._file.write(piece)
            return len(whole)

    def sum(self) -> str:
        """SHA-256, in hex, of all that was written."""
        while self._behind:
            self._behind.popleft().result()
        return self._sha.hexdigest()


def system_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error, on whichever rank it arose."""
    while error is not None and not isinstance(error, OSError):
        if isinstance(error, CheckpointException):
            found = (system_error(failure) for failure, _ in error.failures.values())
            return next((cause for cause in found if cause), None)
        error = error.__cause__ or error.__context__
    return error
