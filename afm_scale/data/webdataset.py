"""Images decoded by Pillow in worker processes, at exact positions. No package is needed: the shards have an index.

Which sample lies at a position, and how it is to be moved, is worked out here, in the main process; a worker is given
one turn after another, so what comes back depends neither on the number of workers nor on how far they read ahead.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Event

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..core.errors import DataError
from ..core.processes import shared_memory, starting_processes
from ..core.stopping import SIGNALS
from .affine import Affine, AffineConfig, affines_at, moved
from .images import ImageSource, decoded_image, read_or_substitute
from .order import EpochOrder, StreamCursor
from .shards import PackedShards, SampleError
from .source import Skipped
from .transforms import ImageError, to_pixels, to_rgb

Turn = tuple[Tensor, Tensor, Sequence[Skipped]]
"""Pixels uint8 [B, 3, S, S], labels int64 [B], what was skipped."""

Draw = tuple[int, Affine | None]
"""A sample's number, and what the position it is drawn for does to it, or to its substitute."""

# The trainer stops at a step boundary when it gets one of these, and a scheduler sends them to the whole process group:
# workers have to go on until the trainer has no more need of them.
_TRAINERS_SIGNALS = SIGNALS

# Memory that Pillow keeps for its next image instead of asking the system for it anew: a tenth of the decoding time.
_KEPT_BLOCKS = 8


class WebDatasetSource(ImageSource):
    """`config.workers` processes, each of which decodes whole turns and is up to `config.prefetch` turns ahead.

    There is one stream: a second iterator ends the first.
    """

    _workers: _Workers | None = None

    def decoded(self) -> Iterator[Turn]:
        """Raises DataError for a sample that cannot be used, unless those are skipped, and if a worker dies."""
        self.close()
        with warnings.catch_warnings():
            # More workers than cores: a matter of taste where they wait for a network file system.
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            with starting_processes():
                workers = self._workers = _Workers(self._loader())
        try:
            while True:
                yield workers.turn()
        finally:
            workers.close()

    def close(self) -> None:
        """Ends the workers, each after the turn it is at."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _loader(self) -> DataLoader:
        config = self.config
        return DataLoader(
            _Decoder(self.shards, config.size, self.seed, config.on_error),
            sampler=_DrawsOfTurns(self.order, self.cursor, config.affine, self.seed),
            batch_size=None,  # an item is a whole turn
            collate_fn=_as_it_is,
            num_workers=config.workers,
            prefetch_factor=config.prefetch,
            worker_init_fn=_become_a_worker,
            multiprocessing_context=_start_method(),
            generator=torch.Generator(),  # the loader draws a seed that nothing here uses; not from the global one
            pin_memory=self.device.type == "cuda",
        )


class _Workers:
    """The processes of one iteration.

    Only this object refers to the loader's iterator. Nobody else may, a traceback neither: its semaphores have to go
    with it, since the program leaves without the interpreter's clean-up and would be told of a leak.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._turns = iter(loader)
        self._turns._workers_done_event = _DoneEvent(self._turns._workers_done_event)
        # At exit, multiprocessing sends SIGTERM and waits, which would be forever; what is registered now comes before.
        atexit.register(self.close)

    def turn(self) -> Turn:
        assert self._turns is not None, "the source was closed, or iterated over anew"
        try:
            turn = next(self._turns)
        except (RuntimeError, OSError, EOFError) as error:  # OSError, EOFError: it held the memory of a batch
            told = str(error)
            if "in DataLoader worker process" in told or type(error) is RuntimeError and "exited unex" not in told:
                raise  # a mistake of ours, told by a worker that lives
            raise DataError(
                "a process that decodes images was killed, most often for want of main memory, which holds the batches "
                "read ahead too; lower data.workers or data.prefetch, or allow it more"
            ) from None
        if isinstance(turn, DataError):
            raise turn
        return turn

    def close(self) -> None:
        atexit.unregister(self.close)
        if self._turns is not None:
            self._turns._shutdown_workers()  # as its __del__ does, but now
            for worker in self._turns._workers:
                worker.kill()  # for one that hangs in a read: it is deaf to the SIGTERM that it has been sent by now
            self._turns = None


class _DoneEvent:
    """The event by which the loader tells its workers to end, as this process uses it, without ever waiting for long.

    Workers look at the event all the time and hold its lock while they do; one that is killed just then keeps it, and
    the loader would wait for it forever, first of all when it finds that the worker has died.
    """

    def __init__(self, event: Event) -> None:
        self._event = event
        self._is_set = False

    def is_set(self) -> bool:
        """Nobody but this process sets it."""
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        setter = threading.Thread(target=self._event.set, daemon=True)
        setter.start()
        setter.join(timeout=2.0)  # if that is not enough, the workers are killed in the end


@dataclass(frozen=True)
class _DrawsOfTurns:
    """The draws of this rank's turns, from the cursor on, without end."""

    order: EpochOrder
    cursor: StreamCursor
    affine: AffineConfig | None
    seed: int

    def __iter__(self) -> Iterator[list[Draw]]:
        for positions in self.cursor.upcoming():
            samples = self.order.indices(positions).tolist()
            yield list(zip(samples, affines_at(self.affine, positions, seed=self.seed), strict=True))


@dataclass(frozen=True)
class _Decoder(Dataset):
    """Makes a turn of its draws; a copy is sent to every worker."""

    shards: PackedShards
    size: int
    seed: int
    on_error: str

    def __getitem__(self, draws: list[Draw]) -> Turn | DataError:
        """An error in the data is returned: raised, it would reach the trainer wrapped in this process's traceback."""
        pixels = shared_memory((len(draws), 3, self.size, self.size))
        labels = shared_memory((len(draws),), torch.int64)
        used, skipped = [], []
        try:
            for place, (sample, affine) in zip(pixels, draws, strict=True):
                number, image, passed_over = read_or_substitute(
                    self.shards, sample, partial(self._read, affine=affine), seed=self.seed, on_error=self.on_error
                )
                place.copy_(image)
                used.append(number)
                skipped.extend(passed_over)
        except DataError as error:
            return error.plain()
        torch.index_select(self.shards.index.label, 0, torch.tensor(used), out=labels)
        return pixels, labels, skipped

    def _read(self, sample: int, *, affine: Affine | None) -> Tensor:
        """uint8 [3, S, S]. Raises SampleError."""
        image = decoded_image(self.shards, sample, self.shards.read(sample))
        try:
            if affine is not None:
                image = moved(to_rgb(image), affine)
            return to_pixels(image, self.size)
        except ImageError as error:
            raise SampleError(self.shards.place(sample), error.reason) from None


def _as_it_is(turn: Turn | DataError) -> Turn | DataError:
    return turn


def _start_method() -> BaseContext:
    """Workers are forked from a server that has imported this module, and torch with it, once.

    Forking the trainer would copy locks that its threads hold (gloo, NCCL, a checkpoint being written), and some worker
    of some rank would wait for one forever. Spawning would import torch in every worker of every rank.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for start in (resource_tracker.ensure_running, forkserver.ensure_running):
        with _signals_held():  # once for each: starting the tracker unblocks what it finds blocked
            start()
    return context


@contextmanager
def _signals_held() -> Iterator[None]:
    """The trainer's signals wait until the block ends; processes started in it inherit that, and it stays with them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINERS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become_a_worker(number: int) -> None:
    Image.core.set_blocks_max(_KEPT_BLOCKS)
    for signum in _TRAINERS_SIGNALS:  # the server may have been started by someone else, who held none
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_trainer, daemon=True).start()


def _die_with_the_trainer() -> None:
    """torch's own watch is on the process that forked the worker: here the server, which lives while a worker does."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)
