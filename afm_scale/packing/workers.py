"""The processes that write shards: each shard by one of them, none of them left over, one packing at a time."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.errors import EXIT_STOPPED_BY_SIGNAL, DataError, RunError
from ..core.files import append_regular, explained_write, open_regular
from ..core.processes import check_processes, starting_processes
from ..core.screen import errors, note
from ..data.members import TEXT, text_of
from ..data.transforms import ImageError
from .originals import Original, Reader
from .recode import Recode
from .writer import Packing, scratch_folder

_LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_LINE_SECONDS = 30.0


@contextmanager
def one_packing_alone(out: Path) -> Iterator[None]:
    """Waits for the processes of a packing that was killed to be gone; refuses to work beside one that runs."""
    path = _lock_path(out)
    with explained_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = append_regular(path)
    with file:
        until = time.monotonic() + _LOCK_SECONDS
        while not _locked(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise DataError(f"another packing into {out} is running; wait for its end, or choose another folder")
            time.sleep(_LOOK_SECONDS)
        _locked(file.fileno(), fcntl.LOCK_SH)  # workers hold it as well
        try:
            yield
        finally:
            _remove_if_unused(path)


def _remove_if_unused(lock: Path) -> None:
    """A packing that could not begin leaves nothing behind."""
    scratch = lock.parent
    if scratch.is_dir() and os.listdir(scratch) == [lock.name]:
        shutil.rmtree(scratch, ignore_errors=True)
        if not os.listdir(scratch.parent):
            scratch.parent.rmdir()


def _lock_path(out: Path) -> Path:
    return scratch_folder(out) / "lock"


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@dataclass(frozen=True, kw_only=True)
class _Task:
    number: int
    first_key: int
    originals: Sequence[Original]


def _tasks(packing: Packing, order: Sequence[Original], num_shards: int) -> Iterator[_Task]:
    for number in range(num_shards):
        start, end = (shard * len(order) // num_shards for shard in (number, number + 1))
        if not packing.is_written(number):
            yield _Task(number=number, first_key=start, originals=order[start:end])


def _make_shard(
    packing: Packing, reader: Reader, recode: Recode, task: _Task, advance: Callable[[], None]
) -> None:
    with packing.shard(task.number) as writer:
        for key, original in enumerate(task.originals, start=task.first_key):
            try:
                extension, data, changes = recode(original.name, reader.read(original))
                members = {extension: data, **_text(original, reader)}
            except ImageError as error:
                writer.refuse(original.name, error.reason)
            else:
                writer.add(key, original.label, members, name=original.name, changes=changes)
            advance()


def _text(original: Original, reader: Reader) -> dict[str, bytes]:
    """The member of the text that belongs to an image, if one does. Raises ImageError if it cannot be its prompt."""
    if original.text is None:
        return {}
    data = reader.read(original.text)
    try:
        if not text_of(data).strip():
            raise ImageError("its text is blank")
    except ValueError as error:
        raise ImageError(str(error)) from None
    return {TEXT: data}


def make_all(
    packing: Packing, order: Sequence[Original], num_shards: int, reader: Reader, recode: Recode, *, num_workers: int
) -> None:
    """Writes every shard that is not there yet, with progress on stderr.

    Shard i holds the i-th part of `order`, whoever writes it; a sample's key is its number in that order. Raises
    DataError if the source changes meanwhile, RunError if a worker dies or the user interrupts.
    """
    tasks = list(_tasks(packing, order, num_shards))
    if not tasks:
        return
    left = sum(len(task.originals) for task in tasks)
    check_processes()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with starting_processes():
        packed = context.Value("q", 0)
    work = (packing, reader, recode, packed, _lock_path(packing.out))
    workers = min(num_workers, len(tasks))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=work)
    with _Progress(done=len(order) - left, total=len(order)) as progress:
        try:
            with starting_processes():
                pending = {pool.submit(_work, task) for task in tasks}
            while pending:
                finished, pending = wait(pending, timeout=_LOOK_SECONDS)
                _raise_first(finished)
                progress.show(len(order) - left + packed.value)
        except BrokenProcessPool:
            raise RunError(
                "a worker process was killed (out of memory?); run the same command again to go on, "
                "with fewer --workers if it was memory"
            ) from None
        except KeyboardInterrupt:
            stopped = RunError("stopped; run the same command again to go on")
            stopped.exit_code = EXIT_STOPPED_BY_SIGNAL
            raise stopped from None
        finally:
            pool.shutdown(cancel_futures=True)


def _raise_first(finished: set[Future]) -> None:
    for future in finished:
        future.result()


_advance_and_work: tuple[Any, ...] = ()  # of a worker process, set once by its initialiser


def _start_worker(packing: Packing, reader: Reader, recode: Recode, packed: Any, lock: Path) -> None:
    global _advance_and_work
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # no orphans write shards
    held = open_regular(lock)
    _locked(held.fileno(), fcntl.LOCK_SH)

    def advance() -> None:
        with packed.get_lock():
            packed.value += 1

    _advance_and_work = (packing, reader, recode, advance, held)


def _work(task: _Task) -> None:
    packing, reader, recode, advance, _ = _advance_and_work
    _make_shard(packing, reader, recode, task, advance)


class _Progress:
    """A bar on a terminal, and now and then a line elsewhere; on stderr."""

    def __init__(self, *, done: int, total: int) -> None:
        self._total = total
        self._bar = tqdm(initial=done, total=total, unit="image") if errors().isatty() else None
        self._next_line = time.monotonic()
        self._shown = done

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._shown)
        elif time.monotonic() >= self._next_line or (done == self._total and self._shown < done):
            note(f"{done:,} of {self._total:,} images")
            self._next_line = time.monotonic() + _LINE_SECONDS
        self._shown = done
