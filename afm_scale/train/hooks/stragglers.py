"""Who the others wait for: every k steps each rank's own time in a step, and those that are slow by a written rule.

In a synchronous step all ranks take as long as the slowest, so a rank's clock does not show which it is. A rank's own
time is what passes from the moment that the last rank has begun a collective, when all could go on, until it begins
the next one itself. Torch's flight recorder notes when; nothing is measured in the step, nothing waits for the device.
With a GPU these are times of the host, which queues ahead of it.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import torch
import torch.distributed as dist
from torch import Tensor

from ...core.files import append_regular, explained_write
from ...core.ranges import Count, Range
from ...core.run_folder import RunFolder
from ...core.screen import note
from ...parallel.flight import begun_by_all
from ..failures import Failures
from ..state import TrainState
from .events import EventLog
from .hook import QuietHook, StepReport
from .metrics import forget_later_lines
from .surroundings import Surroundings

MOST_COLLECTIVES = 512  # that are looked at: the last ones of the steps since the last look
LEAST_SECONDS = 0.02  # of a step: a machine with other work has steps that differ by less
AGAIN = 2  # looks in a row that a rank has to be slow in


@dataclass(frozen=True, kw_only=True)
class StragglersConfig:
    """Every `every_steps` steps the ranks compare their own times.

    A rank is slow if, in two looks in a row, its own time in a step is longer than the median of the others' by more
    than `share` of a step and 20 ms.
    """

    every_steps: Count = 50  # between two looks
    share: Annotated[float, Range(above=0, high=1)] = 0.25  # of a step's time


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look found; seconds a step, by ranks."""

    step: int
    seconds: float  # of a step
    own: Sequence[float]
    data: Sequence[float]  # that the loop waited for data
    slow: Sequence[int] = ()  # ranks


def own_times(begun: Tensor) -> Tensor:
    """Seconds of each rank's own between the first and the last collective.

    Args:
        begun: [ranks, collectives] float64, when each rank has begun each of them, by one clock
    Returns: [ranks] float64
    """
    # Below 0 where it has not waited for one that it began before.
    return (begun[:, 1:] - begun[:, :-1].amax(dim=0)).clamp(min=0).sum(dim=1)


def slow_ranks(own: Sequence[float], seconds: float, share: float) -> list[int]:
    """The rule, in one look."""
    others = [statistics.median([*own[:rank], *own[rank + 1:]]) for rank in range(len(own))]
    return [rank for rank, value in enumerate(own) if value - others[rank] > max(share * seconds, LEAST_SECONDS)]


class StragglersHook(QuietHook):
    """On every rank of several. Rank 0 appends a line to RUN/ranks.jsonl, and names a slow rank once until it recovers.
    """

    def __init__(
        self, config: StragglersConfig, *, rank: int, world_size: int, folder: RunFolder, events: EventLog,
        failures: Failures,
    ) -> None:
        self._config, self._rank, self._world_size = config, rank, world_size
        self._folder, self._events, self._failures = folder, events, failures
        self._group = dist.new_group(backend="gloo", group_desc="stragglers")
        self._clock = 0.0  # when all ranks were at the same point
        self._reports: list[StepReport] = []
        self._since = 0  # nanoseconds
        self._suspects: dict[int, int] = {}  # how often in a row
        self._named: set[int] = set()

    def on_start(self, state: TrainState) -> None:
        if self._rank == 0 and self._folder.ranks.exists():
            with self._failures.kept():
                forget_later_lines(self._folder.ranks, state.step)
        dist.barrier(group=self._group)
        self._begin()

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self._reports.append(report)
        if report.step % self._config.every_steps == 0:
            found = self._look(report.step)
            self._begin()
            if found is not None and self._rank == 0:
                with self._failures.kept():
                    self._tell(found)

    def _begin(self) -> None:
        """All ranks have just been in a collective: they leave it at the same time, whatever their clocks say."""
        self._clock, self._since, self._reports = time.time(), time.time_ns(), []

    def _look(self, step: int) -> Look | None:
        """None where the collectives do not tell, as with torch's recorder switched off."""
        begun = begun_by_all(self._world_size, self._since)[-MOST_COLLECTIVES:]
        seconds = sum(report.seconds for report in self._reports) / len(self._reports)
        data = sum(report.data_seconds for report in self._reports) / len(self._reports)
        pairs = [(float(number), at / 1e9 - self._clock) for number, at in begun]
        pairs += [(0.0, 0.0)] * (MOST_COLLECTIVES - len(pairs))
        row = torch.tensor([*itertools.chain(*pairs), seconds, data], dtype=torch.float64)
        rows = torch.empty(self._world_size, len(row), dtype=torch.float64)
        dist.all_gather(list(rows.unbind()), row, group=self._group)
        numbers, times = rows[:, :-2].unflatten(1, (-1, 2)).unbind(-1)
        same = (numbers == numbers[0]).all(dim=0) & (numbers[0] != 0)
        if same.sum() < 2:
            return None
        times = times[:, same]
        spanned = (times.amax(dim=0)[-1] - times.amax(dim=0)[0]).item()
        mean = rows[:, -2].mean().item()
        share = own_times(times) / max(spanned, 1e-9)  # of the time that the collectives span
        return Look(
            step=step, seconds=round(mean, 6), own=[round(value * mean, 6) for value in share.tolist()],
            data=[round(value, 6) for value in rows[:, -1].tolist()],
        )

    def _tell(self, found: Look) -> None:
        seen = slow_ranks(found.own, found.seconds, self._config.share)
        self._suspects = {rank: self._suspects.get(rank, 0) + 1 for rank in seen}
        slow = [rank for rank, times in self._suspects.items() if times >= AGAIN]
        found = replace(found, slow=slow)
        with explained_write(self._folder.ranks), append_regular(self._folder.ranks) as file:
            file.write((json.dumps(asdict(found)) + "\n").encode())
        for rank in slow:
            if rank not in self._named:
                others = statistics.median([*found.own[:rank], *found.own[rank + 1:]])
                note(
                    f"rank {rank} is slow: {found.own[rank]:.3g} s of its own in a step, where the median of the "
                    f"others is {others:.3g} s (a step takes {found.seconds:.3g} s, rank {rank} waits "
                    f"{found.data[rank]:.3g} s of it for data); step {found.step}"
                )
                self._events.write(
                    "straggler", step=found.step, rank=rank, own_seconds=found.own[rank], others_median=others,
                    step_seconds=found.seconds, data_seconds=found.data[rank],
                )
        self._named = (self._named | set(slow)) & set(seen)


def build(config: StragglersConfig, around: Surroundings) -> StragglersHook | None:
    plan = around.plan
    if plan.world_size == 1:
        return None
    return StragglersHook(
        config, rank=plan.rank, world_size=plan.world_size, folder=around.folder, events=around.events,
        failures=around.failures,
    )
