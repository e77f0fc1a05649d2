"""How good generated digits are, in the 64-d space of their pixels in [-1, 1], against the held-out fifth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from ...core.errors import DivergenceError
from ...core.ranges import Range, Seed
from ...core.types import Batch
from ...data.source import SourceConfig
from ...data.toys.digits import DigitsConfig, held_out_digits, training_digits
from ...sampling.pictures import image_grid, save_png
from ...sampling.subject import Subject
from ..measurement import Findings, OfGenerator, check_shape
from ..statistics import Array, frechet_distance, gaussian_statistics, mean_pairwise_distance, precision_recall

NUM_NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class DigitsQuality:
    """Measures of samples, and the same of the real training digits (`real_*`): what a perfect generator would get.

    The references are 0.994 (the classifier on held-out digits), 0.417, 0.93 and 0.89; the Frechet distance of
    Gaussian noise is 62, of the same noise clipped 45. Precision and recall depend a little on the number of samples.
    """

    class_accuracy: float  # share of samples that the classifier takes for the class that was asked for
    frechet_distance: float  # to the held-out digits, unbiased covariances
    precision: float  # share of samples that lie among the held-out digits, k = 3
    recall: float  # share of held-out digits that lie among the samples: the diversity of the whole
    diversity: float  # mean distance of two samples of a class over that of two training digits; 0: all alike
    real_accuracy: float
    real_frechet_distance: float
    real_precision: float
    real_recall: float


def digits_quality(samples: Tensor, labels: Tensor) -> DigitsQuality:
    """Measures samples [N, 1, 8, 8], clipped to [-1, 1] as pictures are, made for labels [N] int64.

    The labels should be spread evenly over the ten classes, as they are over the held-out digits, and some class must
    occur twice. Raises DivergenceError if a sample is not finite.
    """
    if not torch.isfinite(samples).all():
        raise DivergenceError("the generated digits are not finite numbers: the training had diverged")
    fake = _flat(samples.clamp(-1, 1))
    asked = labels.detach().cpu().numpy()
    frechet, precision, recall = _against_held_out(fake)
    real_accuracy, (real_frechet, real_precision, real_recall) = _references()
    return DigitsQuality(
        class_accuracy=float((_classifier().predict(fake) == asked).mean()),
        frechet_distance=frechet, precision=precision, recall=recall, diversity=_diversity(fake, asked),
        real_accuracy=real_accuracy, real_frechet_distance=real_frechet, real_precision=real_precision,
        real_recall=real_recall,
    )


def _flat(images: Tensor) -> Array:
    return images.detach().to("cpu", torch.float64).flatten(1).numpy()


def _features(digits: Batch) -> tuple[Array, np.ndarray]:
    return _flat(digits.x), digits.y.numpy()


@cache
def _classifier() -> SVC:
    """A support vector machine with a Gaussian kernel, fitted on the training digits; 0.994 on the held-out ones."""
    return SVC(C=10.0).fit(*_features(training_digits()))


def _against_held_out(features: Array) -> tuple[float, float, float]:
    real, _ = _features(held_out_digits())
    distance = frechet_distance(*gaussian_statistics(features), *gaussian_statistics(real))
    return distance, *precision_recall(real, features, NUM_NEIGHBOURS)


@cache
def _references() -> tuple[float, tuple[float, float, float]]:
    training, _ = _features(training_digits())
    return float(_classifier().score(*_features(held_out_digits()))), _against_held_out(training)


def _diversity(fake: Array, asked: np.ndarray) -> float:
    real, classes = _features(training_digits())
    ratios = [
        mean_pairwise_distance(fake[asked == label]) / mean_pairwise_distance(real[classes == label])
        for label, count in zip(*np.unique(asked, return_counts=True), strict=True)
        if count > 1
    ]
    if not ratios:
        raise ValueError("diversity needs two samples of some class; every class asked for has one")
    return float(np.mean(ratios))


def draw_digits(path: Path, images: Tensor, *, upscale: int) -> None:
    """Draws [100, 1, S, S] of the classes 0, 1, ... 9 in turn to a PNG: a row for each class."""
    by_class = images.unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
    names = [str(label) for label in range(10)]
    save_png(image_grid(by_class, columns=10, upscale=upscale, row_labels=names), path)


@dataclass(frozen=True, kw_only=True)
class DigitsReport(OfGenerator):
    """Measures samples against the held-out digits and draws ten of each class."""

    kind: Literal["digits"] = "digits"
    # balanced over the classes; recall depends a little on it
    num_samples: Annotated[int, Range(100, 1_000_000)] = 1440
    seed: Seed = 0  # of the noises
    upscale: Annotated[int, Range(1, 64)] = 6  # of the picture: pixels per pixel

    def check(self, data: SourceConfig, setting: str) -> None:
        check_shape(data, DigitsConfig.shape, DigitsConfig.num_classes, setting, self.kind)

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`."""
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)
        if subject.place.rank == 0:
            draw_digits(picture, images[:100], upscale=self.upscale)
        return asdict(digits_quality(images.float(), labels))
