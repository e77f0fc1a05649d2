"""What a person at the terminal sees: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Annotated, TextIO

import torch
from tqdm import tqdm

from ...core.ranges import Range
from ...core.screen import errors, note
from ..state import TrainState
from .hook import QuietHook, StepReport
from .surroundings import Surroundings
from .utilisation import Utilisation

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ConsoleConfig:
    """How often the console is written to: losses are read, which waits for the device, only then."""

    bar_every_seconds: Annotated[float, Range(0, 1e6)] = 1.0  # on a terminal
    line_every_seconds: Annotated[float, Range(0, 1e6)] = 10.0  # elsewhere


class ConsoleHook(QuietHook):
    """Shows the step, every player's total loss on this rank, images per second, what a rank makes of its device
    (`utilisation.py`), the share of the time that was spent waiting for data, the most memory that this rank has held
    so far (of its GPU; without one, of the process), and the time left.

    Build it on rank 0 only. Rates are of the time since the last line, saving and sampling included.
    """

    def __init__(
        self, config: ConsoleConfig, *, total_steps: int, device: torch.device = CPU, stream: TextIO | None = None,
        utilisation: Utilisation | None = None,
    ) -> None:
        self._total_steps, self._device, self._utilisation = total_steps, device, utilisation
        self._stream = errors() if stream is None else stream
        self._show_bar = self._stream.isatty()
        self._every_seconds = config.bar_every_seconds if self._show_bar else config.line_every_seconds
        self._bar: tqdm | None = None
        self._images = self._steps = 0
        self._data_seconds = self._since = 0.0

    def on_start(self, state: TrainState) -> None:
        self._since = time.monotonic()
        self._images = self._steps = 0
        self._data_seconds = 0.0
        if self._show_bar:
            self._bar = tqdm(
                total=self._total_steps, initial=state.step, file=self._stream, dynamic_ncols=True, unit="step",
                bar_format="{percentage:3.0f}%|{bar}| {desc}",
            )

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self._images += report.images
        self._steps += 1
        self._data_seconds += report.data_seconds
        seconds = time.monotonic() - self._since
        is_due = seconds >= self._every_seconds
        if is_due or report.step == self._total_steps:
            self._show(report, seconds, self._of_device(state, seconds) if is_due else "")
            self._images = self._steps = 0
            self._data_seconds = 0.0
            self._since = time.monotonic()  # what was counted for this line is no part of the next

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def _of_device(self, state: TrainState, seconds: float) -> str:
        """Left out of the only line of a run that is over before one is due: counting may take longer than that."""
        rate = self._images / max(seconds, 1e-9)
        return "" if self._utilisation is None else self._utilisation.describe(state, rate)

    def _show(self, report: StepReport, seconds: float, of_device: str) -> None:
        losses = [
            f"{name.removesuffix('/total')} {float(value):.4f}"
            for name, value in report.terms.items() if name.endswith("/total")
        ]
        seconds_left = (self._total_steps - report.step) * seconds / self._steps
        seconds = max(seconds, 1e-9)
        text = "  ".join(filter(None, [
            f"step {report.step}/{self._total_steps}", *losses, f"{self._images / seconds:,.0f} images/s", of_device,
            f"data wait {self._data_seconds / seconds:.0%}", f"{most_memory(self._device) / 2**30:.1f} GiB",
            f"{_clock(seconds_left)} left",
        ]))
        if self._bar is None:
            note(text, self._stream)
        else:
            self._bar.n = report.step
            self._bar.set_description_str(text)


def build(config: ConsoleConfig, around: Surroundings) -> ConsoleHook | None:
    if around.plan.rank != 0:
        return None
    plan = around.plan
    utilisation = Utilisation(around.operations, plan.device, plan.world_size)
    return ConsoleHook(config, total_steps=around.total_steps, device=plan.device, utilisation=utilisation)


def most_memory(device: torch.device) -> int:
    """Bytes: what tensors have held of a GPU at most, since that was reset; else what the process has of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _clock(seconds: float) -> str:
    """Seconds as a clock shows them, 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
