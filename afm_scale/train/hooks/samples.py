"""Sample sheets: every k steps, the same noise through the average network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor

from ...core.ranges import Count, Range
from ...core.words import DRAWING, STANDING
from ...parallel.plan import ParallelPlan
from ...sampling.pictures import image_grid, save_png
from ..failures import Failures
from ..state import TrainState
from .hook import QuietHook, StepReport
from .surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """A sheet has one row per class and `images_per_class` columns."""

    every_steps: Count  # between two sheets
    images_per_class: Annotated[int, Range(1, 1_000)] = 10  # columns of a sheet
    max_classes: Annotated[int, Range(1, 1_000)] = 10  # rows of a sheet, at most
    upscale: Annotated[int, Range(1, 64)] = 4  # pixels per pixel


class SamplesHook(QuietHook):
    """Writes samples/step_00001234.png. All ranks draw, rank 0 writes."""

    def __init__(
        self, plan: ParallelPlan, config: SamplesConfig, *, folder: Path, seed: int, num_steps: int, failures: Failures
    ) -> None:
        self._plan = plan
        self._config = config
        self._folder = folder
        self._seed = seed
        self._num_steps = num_steps
        self._failures = failures

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if state.step % self._config.every_steps == 0:
            with STANDING.during(DRAWING):
                self._draw(state, self._folder / f"step_{state.step:08d}.png")

    def _draw(self, state: TrainState, path: Path) -> None:
        images, classes = self._samples(state)
        if self._plan.rank == 0:
            grid = image_grid(
                images, columns=self._config.images_per_class, upscale=self._config.upscale,
                row_labels=[str(label) for label in classes],
            )
            with self._failures.kept():
                save_png(grid, path)

    def _samples(self, state: TrainState) -> tuple[Tensor, range]:
        """Images [classes * images_per_class, C, H, W], class by class, and the classes."""
        classes = range(min(state.data.num_classes, self._config.max_classes))
        subject = state.subject(self._plan, self._num_steps)
        stream = subject.stream(seed=self._seed, labels=classes)
        images, _ = subject.generate(stream, len(classes) * self._config.images_per_class)
        return images.unflatten(0, (-1, len(classes))).transpose(0, 1).flatten(0, 1), classes


def build(config: SamplesConfig, around: Surroundings) -> SamplesHook:
    return SamplesHook(
        around.plan, config, folder=around.folder.samples, seed=around.seed, num_steps=around.sampling_steps,
        failures=around.failures,
    )
