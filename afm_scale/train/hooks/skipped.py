"""What the data source had to skip: one JSON line each, in a file of each rank that has any."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ...core.files import append_regular, explained_write
from ..failures import Failures
from ..state import TrainState
from .hook import QuietHook, StepReport
from .metrics import forget_later_lines
from .surroundings import Surroundings


class SkippedHook(QuietHook):
    """Appends {"step", "rank", "place", "reason", "substitute"} to FOLDER/rank_00000.jsonl. On every rank that reads
    samples of its own."""

    def __init__(self, folder: Path, *, rank: int, world_size: int, failures: Failures) -> None:
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._failures = failures

    def on_start(self, state: TrainState) -> None:
        """Forgets the lines of steps that will be taken again, those of ranks that are no more too."""
        with self._failures.kept():
            for path in self._folder.glob("rank_*.jsonl"):
                number = path.stem.removeprefix("rank_")
                if number.isdecimal() and int(number) % self._world_size == self._rank:
                    forget_later_lines(path, state.step)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if not report.skipped:
            return
        path = self._folder / f"rank_{self._rank:05d}.jsonl"
        with self._failures.kept(), explained_write(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with append_regular(path) as file:
                for skipped in report.skipped:
                    row = {"step": report.step, "rank": self._rank, **asdict(skipped)}
                    file.write((json.dumps(row) + "\n").encode())


def build(config: None, around: Surroundings) -> SkippedHook | None:
    plan = around.plan
    if not plan.place.leads_group:  # of those that read the same samples, one tells
        return None
    return SkippedHook(
        around.folder.skipped, rank=plan.data_rank, world_size=plan.num_data_ranks, failures=around.failures
    )
