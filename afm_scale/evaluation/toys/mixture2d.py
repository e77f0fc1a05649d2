"""Where samples of a mixture of classes in the plane lie about the centres of their classes: numbers and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from ...core.errors import DivergenceError
from ...core.files import write_atomically
from ...core.random import Positions
from ...core.ranges import Count, Range, Seed
from ...core.types import Batch
from ...data.source import SourceConfig
from ...data.toys.mixture2d import ClassMixture, Mixture2DConfig, Mixture2DSource
from ...parallel.agreement import from_rank_0
from ...sampling.subject import Subject
from ..measurement import Findings, OfGenerator, check_shape
from ..statistics import frechet_distance, gaussian_statistics, mean_pairwise_distance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _CENTRE, _NUM_DRAWN = "#1c2833", "#000000", 1800


@dataclass(frozen=True, kw_only=True)
class ClassQuality:
    """Measures of samples by class, lengths in units of the classes' sigma; in brackets, what the data have."""

    distance: float  # mean distance of a sample to the centre of its class (1.2533, the root of pi / 2)
    spread: float  # root mean square deviation from the mean of the class's samples, along an axis (1)
    shift: float  # distance of that mean from the centre, mean over the classes (0)
    class_accuracy: float  # share of samples that the exact posterior takes for the class that was asked for


def class_quality(samples: Tensor, labels: Tensor, mixture: ClassMixture) -> ClassQuality:
    """Measures samples [N, 2, 1, 1] made for labels [N] int64. Raises DivergenceError if a sample is not finite.

    Every class must have two samples at least.
    """
    points, labels = samples.detach().to("cpu", torch.float64).flatten(1), labels.cpu()
    if not torch.isfinite(points).all():
        raise DivergenceError("the generated samples are not finite numbers: the training had diverged")
    offsets = (points - mixture.places("cpu")[labels]) / mixture.sigma
    by_class = [offsets[labels == label] for label in range(len(mixture.centres))]
    deviations = torch.stack([of_class.var(dim=0).mean() for of_class in by_class])
    found = mixture.log_posterior(points, torch.zeros(len(points))).argmax(dim=1)
    return ClassQuality(
        distance=float(offsets.norm(dim=1).mean()),
        spread=float(deviations.mean().sqrt()),
        shift=float(torch.stack([of_class.mean(dim=0).norm() for of_class in by_class]).mean()),
        class_accuracy=float((found == labels).double().mean()),
    )


def class_distances(samples: Tensor, labels: Tensor, mixture: ClassMixture) -> tuple[float, float]:
    """(Frechet distance, diversity) of samples [N, 2, 1, 1]: means over the classes, lengths in units of sigma.

    The distance is between normal distributions, and 0 for the data; diversity is the mean distance of two samples of
    a class over that of two of the data, the root of pi times sigma: 1 for the data, 0 if all are alike.
    """
    points = samples.detach().to("cpu", torch.float64).flatten(1)
    offsets = (points - mixture.places("cpu")[labels.cpu()]) / mixture.sigma
    by_class = [offsets[labels.cpu() == label] for label in range(len(mixture.centres))]
    wanted = torch.zeros(2).numpy(), torch.eye(2).numpy()
    distances = [frechet_distance(*gaussian_statistics(of_class.numpy()), *wanted) for of_class in by_class]
    between = [mean_pairwise_distance(of_class) for of_class in by_class]
    return sum(distances) / len(distances), sum(between) / len(between) / math.sqrt(math.pi)


def data_samples(mixture: ClassMixture, count: int) -> Batch:
    """Samples of the data themselves, x [count, 2, 1, 1], other ones than a run of small seed is trained on."""
    config = Mixture2DConfig(global_batch=count, distribution=mixture)
    source = Mixture2DSource(config, seed=-1, rank=0, world_size=1, device="cpu")
    return source.at(Positions(0, 1, count))


def draw_classes(path: Path, panels: Mapping[str, Batch], mixture: ClassMixture) -> None:
    """Draws samples to a PNG, a panel by name: coloured by class, centres crossed, 2 sigma around them circled."""
    from matplotlib.figure import Figure  # here: takes seconds, and every rank of a run imports this module

    figure = Figure(figsize=(3.4 * len(panels), 4.0), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (name, batch) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, batch, mixture)
        distance = class_quality(batch.x, batch.y, mixture).distance
        axis.set_title(f"{name}\nmean distance to the centre {distance:.2f} σ", fontsize=9, color=_INK)
    margin = 5 * mixture.sigma
    (left, right), (bottom, top) = (
        (min(values) - margin, max(values) + margin) for values in zip(*mixture.centres, strict=True)
    )
    axes[0].set(xlim=(left, right), ylim=(bottom, top))
    write_atomically(path, lambda file: figure.savefig(file, dpi=120, format="png"))


def _draw_panel(axis: Axes, batch: Batch, mixture: ClassMixture) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Circle

    points = batch.x.detach().cpu().flatten(1)[:_NUM_DRAWN].numpy()
    labels = batch.y.cpu()[:_NUM_DRAWN].numpy()
    colours = colormaps["tab10"].colors
    axis.scatter(points[:, 0], points[:, 1], s=2, linewidths=0, color=[colours[label % 10] for label in labels])
    for centre in mixture.centres:
        axis.add_patch(Circle(centre, 2 * mixture.sigma, fill=False, color=_CENTRE, linewidth=0.5))
    centres = mixture.places("cpu").numpy()
    axis.scatter(centres[:, 0], centres[:, 1], marker="+", s=30, linewidths=0.9, color=_CENTRE, zorder=3)
    axis.set_aspect("equal")
    axis.tick_params(labelsize=7)


@dataclass(frozen=True, kw_only=True)
class Mixture2DReport(OfGenerator):
    """Measures how samples lie about the centres of their classes, and draws them beside the data."""

    kind: Literal["mixture2d"] = "mixture2d"
    distribution: ClassMixture = ClassMixture()  # of the data
    num_samples: Annotated[int, Range(100, 10_000_000)] = 4500  # balanced over the classes
    seed: Seed = 0  # of the noises

    def check(self, data: SourceConfig, setting: str) -> None:
        check_shape(data, Mixture2DConfig.shape, len(self.distribution.centres), setting, self.kind)

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`."""
        samples = Batch(*subject.generate(subject.stream(seed=self.seed), self.num_samples))
        if subject.place.rank == 0:
            panels = {"data": data_samples(self.distribution, self.num_samples), "samples": samples}
            draw_classes(picture, panels, self.distribution)
        return asdict(class_quality(samples.x, samples.y, self.distribution))


@dataclass(frozen=True, kw_only=True)
class Mixture2DEvaluation(OfGenerator):
    """The same measures while a generator trains, and how far the classes' normal distributions are from the data's."""

    kind: Literal["mixture2d"] = "mixture2d"
    every_steps: Count  # between two evaluations
    distribution: ClassMixture = ClassMixture()  # of the data
    num_samples: Annotated[int, Range(100, 10_000_000)] = 4500  # balanced over the classes
    seed: Seed = 0  # of the noises, the same every time

    def check(self, data: SourceConfig, setting: str) -> None:
        check_shape(data, Mixture2DConfig.shape, len(self.distribution.centres), setting, self.kind)

    def figures(self, subject: Subject) -> dict[str, float]:
        """Collective; measured on rank 0."""
        samples, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)

        def measure() -> dict[str, float]:
            found = asdict(class_quality(samples, labels, self.distribution))
            distance, diversity = class_distances(samples, labels, self.distribution)
            return {"frechet_distance": distance, "diversity": diversity, **found}

        return from_rank_0(subject.place.rank, measure)
