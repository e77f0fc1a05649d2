"""Times the training step of a state that is built for it, and frees it afterwards."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..core.types import Batch
from ..data.source import DataSource, Skipped
from ..data.toys.synthetic import like
from ..ops.choice import Choice
from ..parallel.agreement import agreed
from ..parallel.compile import is_compiled
from ..parallel.launch import Ranks
from ..parallel.plan import ParallelPlan
from ..parallel.process import configure_process
from ..run.config import RunConfig
from ..train.hooks.console import most_memory
from ..train.hooks.hook import HookList, QuietHook, StepReport
from ..train.hooks.profile import profiler_of, write_table, write_trace
from ..train.loop import train
from ..train.state import TrainState

Built = tuple[TrainState, ParallelPlan]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long steps took, as the slowest rank saw it."""

    settings: Mapping[str, Any]
    seconds: Sequence[float]  # of each timed step
    first_step_seconds: float  # with what is compiled in it
    peak_memory_bytes: int  # of the rank that needs most, see `most_memory`

    @property
    def seconds_per_step(self) -> float:
        return statistics.median(self.seconds)


def time_steps(
    config: RunConfig, ranks: Ranks, build: Callable[[RunConfig], Built], *, warm_up: int, steps: int,
    profile_to: Path | None = None,
) -> Timing:
    """Builds, warms up, times and frees, on one batch of random samples of the recipe's shape. Collective.

    The batch is drawn before and handed out again and again, so that no step waits for data. With `profile_to` one
    more step is taken, and watched.
    """
    chosen = configure_process(config.parallel, ranks.device)
    *found, compiled = _timed(config, ranks, build, warm_up, steps, profile_to)
    _free(ranks.device, compiled=compiled)
    of_ranks: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(of_ranks, found)
    seconds, first_steps, peaks = zip(*of_ranks, strict=True)
    return Timing(
        settings=_settings(config, chosen, compiled), seconds=max(seconds, key=statistics.median),
        first_step_seconds=max(first_steps), peak_memory_bytes=max(peaks),
    )


def _timed(
    config: RunConfig, ranks: Ranks, build: Callable[[RunConfig], Built], warm_up: int, steps: int,
    profile_to: Path | None,
) -> tuple[list[float], float, int, bool]:
    """Of this rank: seconds of each step and of the very first one, bytes, and whether blocks were compiled.

    Nothing else is left when it returns.
    """
    samples = like(config.data)
    with agreed():
        state, plan = build(replace(config, data=samples))
    before, timed = _Clock(ranks.device), _Clock(ranks.device)
    with closing(state.data) as source:
        state.data = HeldBatch(source)
        train(state, plan, replace(config.loop, steps=warm_up), HookList([before]))
        _settle(ranks)
        if ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(ranks.device)
        train(state, plan, replace(config.loop, steps=warm_up + steps), HookList([timed]))
        _settle(ranks)
        compiled = any(is_compiled(player.module) for player in state.players.values())
        found = (timed.seconds(), before.seconds()[0], most_memory(ranks.device), compiled)
        if profile_to is not None:
            once_more = replace(config.loop, steps=warm_up + steps + 1)
            _profile(profile_to, ranks, lambda: train(state, plan, once_more, HookList([])))
    return found


class HeldBatch:
    """A source that hands out the first batch of another one again and again."""

    def __init__(self, source: DataSource) -> None:
        self.shape, self.num_classes = source.shape, source.num_classes
        self._batch = next(iter(source))

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self._batch)

    def state_dict(self) -> Mapping[str, int]:
        return {"consumed": 0}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Nothing: it has no position."""

    def take_skipped(self) -> Sequence[Skipped]:
        return ()

    def close(self) -> None:
        """Nothing: the other source is its owner's."""


class _Clock(QuietHook):
    """When the device was done with each step. To be read once all is done: it makes nobody wait."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []

    def on_start(self, state: TrainState) -> None:
        self._mark()

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self._mark()

    def _mark(self) -> None:
        if self._on_gpu:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        pairs = itertools.pairwise(self._marks)
        return [a.elapsed_time(b) / 1000 if self._on_gpu else b - a for a, b in pairs]


def _settle(ranks: Ranks) -> None:
    """Until every rank's device is done."""
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    dist.barrier()


def _free(device: torch.device, *, compiled: bool) -> None:
    if compiled:
        torch._dynamo.reset()  # it may hold weights
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _profile(path: Path, ranks: Ranks, step: Callable[[], None]) -> None:
    """One step: a trace for Perfetto where the path ends in .json, else a table; of rank 0."""
    on_gpu = ranks.device.type == "cuda"
    with profiler_of(on_gpu) as watched:
        step()
        _settle(ranks)
    if ranks.rank != 0:
        return
    if path.suffix == ".json":
        write_trace(watched, path)
    else:
        write_table(watched, path, is_on_gpu=on_gpu, row_limit=60, max_name_column_width=100)


def _settings(config: RunConfig, chosen: Choice, compiled: bool) -> dict[str, Any]:
    parallel = config.parallel
    return {
        "plan": parallel.plan, "precision": parallel.precision, "compile": compiled,
        "recompute": parallel.recompute.kind, "accumulation": config.loop.accumulation, "ops": chosen.described(),
    }
