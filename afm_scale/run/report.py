"""The last word of a run: quality of the average's samples, pictures, one table. Chosen by `report` in the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.types import Batch, Role
from ..data.toys.mixture1d import GaussianMixture
from ..data.toys.mixture2d import ClassMixture
from ..evaluation.toys.digits import digits_quality
from ..evaluation.toys.mixture1d import draw_flow, line_noise, measure_map, quantile_noise
from ..evaluation.toys.mixture2d import class_quality, data_samples, draw_classes
from ..parallel.plan import ParallelPlan
from ..sampling.pictures import image_grid, save_png
from ..sampling.sampler import trajectory
from ..train.state import TrainState
from .classifier_evaluation import ClassifierReport

Findings = Mapping[str, object]


class _OfSamples:
    """A report of a generator's samples; any data will do."""

    measures: ClassVar[Role] = Role.GENERATOR

    def resolved(self) -> _OfSamples:
        return self

    def check(self, data: Any, setting: str) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class DigitsReport(_OfSamples):
    """Measures samples against the held-out digits and draws ten of each class."""

    kind: Literal["digits"] = "digits"
    num_samples: int = 1440  # balanced over the classes; recall depends a little on it
    seed: int = 0
    upscale: int = 6

    def __call__(self, state: TrainState, plan: ParallelPlan, picture: Path, num_steps: int) -> Findings:
        """Every rank must call it; rank 0 draws `picture`."""
        subject = state.subject(plan, num_steps)
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)
        if plan.rank == 0:
            by_class = images[:100].unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
            names = [str(label) for label in range(10)]
            save_png(image_grid(by_class, columns=10, upscale=self.upscale, row_labels=names), picture)
        return asdict(digits_quality(images.float(), labels))


@dataclass(frozen=True, kw_only=True)
class MixtureReport(_OfSamples):
    """Compares the map with the exact optimal transport and draws the paper's picture of the flow."""

    kind: Literal["mixture1d"] = "mixture1d"
    distribution: GaussianMixture = GaussianMixture()  # of the data

    def __call__(self, state: TrainState, plan: ParallelPlan, picture: Path, num_steps: int) -> Findings:
        """Every rank must call it; rank 0 draws `picture`."""

        def path_of(noise: Tensor) -> Tensor:  # [N] -> [N, num_steps + 1]
            x = noise.to(plan.device, plan.dtype).view(-1, 1, 1, 1)
            labels = torch.zeros(len(x), dtype=torch.int64, device=plan.device)
            points = trajectory(
                state.average.network, x, labels, num_steps=num_steps, prediction=state.objective.prediction
            )
            return torch.stack([point.flatten() for point in points], dim=1)

        quality = measure_map(lambda noise: path_of(noise)[:, -1], self.distribution)
        lines, samples = path_of(line_noise()), path_of(quantile_noise())
        if plan.rank == 0:
            times = torch.linspace(1, 0, num_steps + 1)
            draw_flow(picture, times=times, lines=lines, samples=samples, mixture=self.distribution)
        return asdict(quality)


@dataclass(frozen=True, kw_only=True)
class Mixture2DReport(_OfSamples):
    """Measures how samples lie about the centres of their classes, and draws them beside the data."""

    kind: Literal["mixture2d"] = "mixture2d"
    distribution: ClassMixture = ClassMixture()  # of the data
    num_samples: int = 4500  # balanced over the classes
    seed: int = 0

    def __call__(self, state: TrainState, plan: ParallelPlan, picture: Path, num_steps: int) -> Findings:
        """Every rank must call it; rank 0 draws `picture`."""
        subject = state.subject(plan, num_steps)
        samples = Batch(*subject.generate(subject.stream(seed=self.seed), self.num_samples))
        if plan.rank == 0:
            panels = {"data": data_samples(self.distribution, self.num_samples), "samples": samples}
            draw_classes(picture, panels, self.distribution)
        return asdict(class_quality(samples.x, samples.y, self.distribution))


ReportConfig = DigitsReport | MixtureReport | Mixture2DReport | ClassifierReport
