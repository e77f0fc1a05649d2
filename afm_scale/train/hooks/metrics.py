"""Metrics: one row of numbers every k steps, averaged over the ranks and those steps, to any number of writers."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import torch
from torch import Tensor

from ...core.files import LOG_LIMIT, append_regular, explained_write, read_regular, write_atomically
from ...core.ranges import Count
from ...core.screen import note
from ...parallel.plan import ParallelPlan
from ..failures import Failures
from ..state import TrainState
from .hook import QuietHook, StepReport
from .surroundings import Surroundings

Row = Mapping[str, float]
"""Numbers by name; "step" is among them."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases (its writer needs the package, so this stands here). `wandb sync` sends offline runs later."""

    project: str  # its name there
    mode: Literal["offline", "online"] = "offline"  # offline: for `wandb sync` later


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """How often a row is written, which waits for the device, and where to."""

    every_steps: Count = 10  # between two rows
    tensorboard: bool = True  # write events for TensorBoard too
    wandb: WandbConfig | None = None  # null: nothing to Weights & Biases


class MetricWriter(Protocol):
    """Somewhere rows go. Errors of the file system are raised as UserError."""

    def start(self, step: int) -> None:
        """Opens it before the first row. Rows of later steps than `step`, from before a resume, are to be forgotten."""
        ...

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class MetricsHook(QuietHook):
    """Gathers steps and hands rows to the writers, of which every rank but 0 has none.

    A row holds: step, images_seen; every term ("generator/transport", mean over the ranks and the steps since the last
    row) and gradient norm ("generator/grad_norm"); learning rates ("generator/learning_rate", of the last step);
    images_per_second, seconds_per_step (saving and sampling included), data_wait_share (of the time, spent waiting for
    data on rank 0), data_skipped (samples that could not be read since the last row, on all ranks), seconds (since this
    process began to train); and the `notes` that others have made since the last row.
    """

    def __init__(
        self, plan: ParallelPlan, config: MetricsConfig, writers: Sequence[MetricWriter], failures: Failures,
        notes: dict[str, float] | None = None,
    ) -> None:
        self._plan = plan
        self._config = config
        self._writers = tuple(writers)
        self._failures = failures
        self._reports: list[StepReport] = []  # since the last row
        self._notes = {} if notes is None else notes  # of others, likewise
        self._began = self._since = 0.0

    def on_start(self, state: TrainState) -> None:
        self._began = self._since = time.monotonic()
        self._reports = []
        self._notes.clear()
        with self._failures.kept():
            for writer in self._writers:
                writer.start(state.step)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self._reports.append(report)
        if report.step % self._config.every_steps == 0:
            self._write_row(state)

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if error is None and self._reports:
            self._write_row(state)
        with self._failures.kept():
            for writer in self._writers:
                writer.close()

    def _write_row(self, state: TrainState) -> None:
        now = time.monotonic()
        reports, seconds = self._reports, now - self._since
        means, skipped = self._reduced(reports)  # a collective: every rank comes here, whether it writes or not
        row = {
            "step": state.step,
            "images_seen": state.images_seen,
            **means,
            "data_skipped": skipped,
            **{f"{player}/learning_rate": rate for player, rate in reports[-1].learning_rates.items()},
            "images_per_second": sum(report.images for report in reports) / seconds,
            "seconds_per_step": seconds / len(reports),
            "data_wait_share": sum(report.data_seconds for report in reports) / seconds,
            "seconds": now - self._began,
            **self._notes,
        }
        self._notes.clear()
        self._reports, self._since = [], now
        with self._failures.kept():
            for writer in self._writers:
                writer.write(row)

    def _reduced(self, reports: Sequence[StepReport]) -> tuple[dict[str, float], int]:
        """Returns (the mean of every value over the steps that had it, then over the ranks; the number of samples
        skipped), by one small reduction for all.
        """
        values: dict[str, list[Tensor]] = {}
        for report in reports:
            norms = {f"{player}/grad_norm": norm for player, norm in report.grad_norms.items()}
            for name, value in {**report.terms, **norms}.items():
                values.setdefault(name, []).append(value)
        means = [torch.stack(steps).mean() for steps in values.values()]
        number = sum(len(report.skipped) for report in reports)
        skipped = torch.tensor(number, dtype=means[0].dtype if means else torch.float64, device=self._plan.device)
        *reduced, skipped_per_share = self._plan.mean_(torch.stack([*means, skipped])).tolist()
        return dict(zip(values, reduced, strict=True)), round(skipped_per_share * self._plan.num_data_ranks)


def build(config: MetricsConfig, around: Surroundings) -> MetricsHook:
    writers: list[MetricWriter] = []
    if around.plan.rank == 0:
        writers.append(JsonLines(around.folder.metrics))
        if config.tensorboard:
            from .tensorboard import TensorBoard  # slow to import

            writers.append(TensorBoard(around.folder.tensorboard))
        if config.wandb is not None:
            from .wandb import Wandb  # optional: imported only when the configuration names it

            writers.append(Wandb(around.folder.path, around.run_id, config.wandb))
    return MetricsHook(around.plan, config, writers, around.failures, around.notes)


class JsonLines:
    """metrics.jsonl: one JSON object a line, each step at most once; numbers that are not finite are null."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def start(self, step: int) -> None:
        forget_later_lines(self._path, step)
        with explained_write(self._path):
            self._file = append_regular(self._path)

    def write(self, row: Row) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        assert self._file is not None
        with explained_write(self._path):
            if not self._is_there(self._file):
                note(f"{self._path} was deleted or replaced while the run was writing to it: its earlier rows are gone")
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file.close()
                self._file = append_regular(self._path)
            self._file.write((json.dumps(finite) + "\n").encode())
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with explained_write(self._path):
                self._file.close()

    def _is_there(self, file: BinaryIO) -> bool:
        """Whether the open file still has its name: rows written to one without are gone when it is closed."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False


def forget_later_lines(path: Path, step: int) -> None:
    """Leaves the JSON lines of steps up to `step` in a file, or an empty file; a last line may be torn.

    Another line that is none of these is said on the screen, and left out too. Then the file as it was found stays
    beside it, since it may be another program's. Raises UserError if it cannot.
    """
    with explained_write(path):
        content = read_regular(path, LOG_LIMIT) if path.exists() else b""
    lines = content.splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    if math.inf in steps[:-1]:
        names = (path.with_name(f"{path.name}.found{number or ''}") for number in itertools.count())
        aside = next(name for name in names if not name.exists())
        write_atomically(aside, lambda file: file.write(content))
        note(
            f"{path}, line {steps.index(math.inf) + 1} is no row with a step: such lines are left out; the file as it "
            f"was found is {aside}"
        )
    kept = [line for line, its in zip(lines, steps, strict=True) if its <= step]
    write_atomically(path, lambda file: file.writelines(kept))


def _step_of(line: bytes) -> float:
    """The step of a row; infinity for one that a kill tore, and for what is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int else math.inf
