"""Python's garbage, collected on all ranks at the same steps instead of whenever a rank's own count is full."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from ...core.ranges import Count
from ..state import TrainState
from .hook import QuietHook, StepReport
from .surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class GarbageConfig:
    """Every `every_steps` steps garbage is collected, and not in between: until then cycles keep their memory."""

    every_steps: Count = 1000  # between two collections


class GarbageHook(QuietHook):
    """Takes automatic collection away from Python while the run lasts, and collects every k steps.

    A collection stops one process for up to a second, and in a synchronous step all wait for the slowest: with many
    ranks that collect each in their own step, some rank nearly always does. Of one rank it changes little.
    """

    def __init__(self, config: GarbageConfig) -> None:
        self._config = config
        self._was_enabled = False

    def on_start(self, state: TrainState) -> None:
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.disable()

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if report.step % self._config.every_steps == 0:
            gc.collect()

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if self._was_enabled:
            gc.enable()


def build(config: GarbageConfig, around: Surroundings) -> GarbageHook:
    return GarbageHook(config)
