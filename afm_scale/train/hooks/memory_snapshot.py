"""Snapshots of a GPU's memory: who holds what, for torch's own viewer (pytorch.org/memory_viz).

Nothing of it has run: it needs a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from ...core.errors import ConfigError
from ...core.files import named_atomically
from ...core.ranges import Range
from ...core.run_folder import RunFolder
from ..failures import Failures
from ..state import TrainState
from .events import EventLog
from .hook import QuietHook, StepReport
from .request import Request
from .surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class MemorySnapshotConfig:
    """Allocations are recorded; a snapshot is written when memory runs out, and when a file RUN/memory_snapshot is put
    there."""

    entries: Annotated[int, Range(1, 100_000_000)] = 100_000  # allocations and releases remembered, the newest


class Recorder:
    """Torch's record of a GPU's allocations."""

    def begin(self, entries: int) -> None:
        torch.cuda.memory._record_memory_history(max_entries=entries)

    def write(self, path: Path) -> None:
        torch.cuda.memory._dump_snapshot(str(path))

    def end(self) -> None:
        torch.cuda.memory._record_memory_history(enabled=None)


class MemorySnapshotHook(QuietHook):
    """Writes RUN/profiles/memory_step_00000100_rank_00000.pickle. One rank's affair: it communicates nothing."""

    def __init__(
        self, config: MemorySnapshotConfig, *, recorder: Recorder, folder: RunFolder, rank: int, failures: Failures,
        events: EventLog, request: Request,
    ) -> None:
        self._config = config
        self._recorder = recorder
        self._folder = folder
        self._rank = rank
        self._failures = failures
        self._events = events
        self._request = request

    def on_start(self, state: TrainState) -> None:
        self._recorder.begin(self._config.entries)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if self._request.is_new():
            self._write(report.step, "the file")
            if self._rank == 0:
                self._request.withdraw()

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            self._write(state.step, str(error).partition("\n")[0])
        self._recorder.end()

    def _write(self, step: int, why: str) -> None:
        """`step`: completed ones; where memory ran out it was in the next."""
        path = self._folder.profiles / f"memory_step_{step:08d}_rank_{self._rank:05d}.pickle"
        with self._failures.kept():
            with named_atomically(path) as name:
                self._recorder.write(name)
            self._events.write("memory_snapshot", step=step, rank=self._rank, why=why, file=str(path))


def build(config: MemorySnapshotConfig, around: Surroundings) -> MemorySnapshotHook:
    """Raises ConfigError where there is no GPU whose memory could be recorded."""
    plan = around.plan
    if plan.device.type != "cuda":
        raise ConfigError(
            f"hooks.memory_snapshot records the memory of a GPU, and the run is on {plan.device.type}; set "
            "hooks.memory_snapshot=null, or parallel.device=cuda"
        )
    return MemorySnapshotHook(
        config, recorder=Recorder(), folder=around.folder, rank=plan.rank, failures=around.failures,
        events=around.events, request=Request(around.folder.memory_request),
    )
