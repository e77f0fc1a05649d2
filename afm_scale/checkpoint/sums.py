"""SHA-256 of a checkpoint's files, compared while they are read.

The manifest has the sum of every other file. SHA256SUMS beside it has the manifest's own and repeats the others, in the
words of `sha256sum`, so that a person can check all by hand: `sha256sum -c SHA256SUMS` in the checkpoint's folder.
Checkpoints from before there were sums have neither, and load.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..core.errors import TornError
from ..core.files import open_descriptor

_PIECE_BYTES = 2**20
_MOST_THREADS = 8


def sha256_of(path: Path, stop: threading.Event | None = None) -> str:
    """Of a file's bytes, in hex. `stop` ends it early. Raises OSError if it cannot be read, or is no regular file."""
    sha, piece = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
    descriptor = open_descriptor(path)
    try:
        while (length := os.readv(descriptor, [piece])) and not (stop and stop.is_set()):
            sha.update(piece[:length])
    finally:
        os.close(descriptor)
    return sha.hexdigest()


class OneThread(Executor):
    """Works beside a thread that may outlive the interpreter's wish to end, from when on no thread can be started."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name).start()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._work.put(work)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the thread after what was submitted."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


@contextmanager
def comparing(path: Path, sums: Mapping[str, str], threads: Executor | None = None) -> Iterator[None]:
    """Compares files of a checkpoint with their sums in threads beside the block, which may read them meanwhile.

    Args:
        sums: SHA-256 by the file's name in the folder `path`.
        threads: do the work; None: some that are started for it.

    Raises TornError at the end of the block if a file has another sum, also in the place of an error of the block.
    """
    stop = threading.Event()
    with nullcontext(threads) if threads else _some_threads(len(sums)) as workers:
        found = {name: workers.submit(sha256_of, path / name, stop) for name in sums}
        try:
            yield
        except Exception:
            _compare(path, sums, found)
            raise
        except BaseException:  # a signal's, which does not wait
            stop.set()
            raise
        _compare(path, sums, found)


def compare(path: Path, sums: Mapping[str, str], threads: Executor | None = None) -> None:
    """Raises TornError if a file of a checkpoint does not have its sum. As `comparing`."""
    with comparing(path, sums, threads):
        pass


def share_of(files: Mapping[str, int], rank: int, world_size: int) -> list[str]:
    """The files that one of several ranks compares, so that together they compare all, and each about as many bytes.

    Args:
        files: bytes by name, the same on all ranks.
    """
    loads, mine = [0] * world_size, []
    for name in sorted(files, key=lambda name: (-files[name], name)):
        least = loads.index(min(loads))
        loads[least] += files[name]
        if least == rank:
            mine.append(name)
    return mine


def _some_threads(num_files: int) -> Executor:
    return ThreadPoolExecutor(max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)), num_files)))


def _compare(path: Path, sums: Mapping[str, str], found: Mapping[str, Future[str]]) -> None:
    for name, wanted in sums.items():
        try:
            sha256 = found[name].result()
        except OSError as error:
            raise TornError(
                f"{path} is torn: {name} cannot be read ({error.strerror}); use an older checkpoint"
            ) from error
        if sha256 != wanted:
            raise TornError(
                f"{path} is damaged: {name} has SHA-256 {sha256[:16]}..., not {wanted[:16]}... as when it was written; "
                "use an older checkpoint"
            ) from None
