"""Profiles of a run: where the time of a few steps goes, as a trace for Perfetto and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as Profiler

from ...core.files import named_atomically, write_atomically
from ...core.ranges import Count, Range
from ...core.run_folder import RunFolder
from ..failures import Failures
from ..state import TrainState
from .events import EventLog
from .hook import QuietHook, StepReport
from .request import Request
from .surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Some steps are watched by torch's profiler: from `first_step` on, and from now on whenever a file RUN/profile is
    put there."""

    first_step: Count | None = None  # the first of them, counted from 1; null: only when asked by the file
    steps: Annotated[int, Range(1, 1000)] = 3  # how many; a trace of one is some ten megabytes for 28 blocks
    ranks: tuple[Annotated[int, Range(0, 10_000_000)], ...] = (0,)  # that write one each
    rows: Annotated[int, Range(1, 10_000)] = 20  # of the table: what took the most time by itself


class ProfileHook(QuietHook):
    """Writes RUN/profiles/step_00000100_rank_00000.json, which ui.perfetto.dev opens, and the table beside it as .txt.

    One rank's affair: it communicates nothing. A request is seen within some seconds, by each rank for itself, so their
    profiles may begin a few steps apart. While steps are watched they take longer.
    """

    def __init__(
        self, config: ProfileConfig, *, folder: RunFolder, rank: int, is_on_gpu: bool, failures: Failures,
        events: EventLog, request: Request,
    ) -> None:
        self._config = config
        self._folder = folder
        self._rank = rank
        self._is_on_gpu = is_on_gpu
        self._failures = failures
        self._events = events
        self._request = request
        self._profiler: Profiler | None = None
        self._began = 0  # the first step that is watched
        self._why = ""

    def on_start(self, state: TrainState) -> None:
        self._begin_if_wanted(state.step)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if self._profiler is not None and report.step >= self._began + self._config.steps - 1:
            self._write(report.step)
        if self._profiler is None:
            self._begin_if_wanted(report.step)

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if self._profiler is not None and error is None and state.step >= self._began:
            self._write(state.step)  # the run was shorter
        elif self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _begin_if_wanted(self, step: int) -> None:
        """`step`: the last one that is done."""
        is_asked = self._request.is_new()
        if not is_asked and self._config.first_step != step + 1:
            return
        if self._is_on_gpu:
            torch.cuda.synchronize()  # what was asked for before is not of these steps
        self._profiler = profiler_of(self._is_on_gpu, record_shapes=True)
        self._profiler.start()
        self._began, self._why = step + 1, "the file" if is_asked else "hooks.profile"

    def _write(self, last: int) -> None:
        assert self._profiler is not None
        if self._is_on_gpu:
            torch.cuda.synchronize()
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        name = f"step_{self._began:08d}_rank_{self._rank:05d}"
        trace = self._folder.profiles / f"{name}.json"
        with self._failures.kept():
            write_trace(profiler, trace)
            write_table(profiler, trace.with_suffix(".txt"), is_on_gpu=self._is_on_gpu, row_limit=self._config.rows)
            self._events.write(
                "profile", step=last, first=self._began, rank=self._rank, why=self._why, trace=str(trace)
            )
        if self._why == "the file" and self._rank == min(self._config.ranks):
            self._request.withdraw()


def profiler_of(is_on_gpu: bool, **details: Any) -> Profiler:
    """Of the host, and of a GPU if there is one; `details` as torch's."""
    return Profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_on_gpu else [])], **details)


def write_trace(profiler: Profiler, path: Path) -> None:
    """For ui.perfetto.dev. Raises UserError if the file cannot be written."""
    with named_atomically(path) as name:
        profiler.export_chrome_trace(str(name))


def write_table(profiler: Profiler, path: Path, *, is_on_gpu: bool, **details: int) -> None:
    """What took the most time by itself, `details` as torch's. Raises UserError if the file cannot be written."""
    order = "self_device_time_total" if is_on_gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, **details).encode()
    write_atomically(path, lambda file: file.write(table))


def build(config: ProfileConfig, around: Surroundings) -> ProfileHook | None:
    plan = around.plan
    if plan.rank not in config.ranks:
        return None
    return ProfileHook(
        config, folder=around.folder, rank=plan.rank, is_on_gpu=plan.device.type == "cuda", failures=around.failures,
        events=around.events, request=Request(around.folder.profile_request),
    )
