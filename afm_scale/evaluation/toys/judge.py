"""How good samples of ten classes of digits are, once it is said what stands for an image and what it is compared with.

Both embedded sets of digits are measured so: by distances between features, and by a classifier of the same features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ...core.errors import DivergenceError
from ...core.types import Batch
from ..statistics import Array, frechet_distance, gaussian_statistics, mean_pairwise_distance, precision_recall

if TYPE_CHECKING:
    from sklearn.svm import SVC

NUM_NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class SampleQuality:
    """Measures of samples. Frechet distance, precision and recall depend on how many there are: compare equal numbers.

    Real digits are those of the part that samples are compared with.
    """

    class_accuracy: float  # share of samples that the classifier takes for the class that was asked for
    frechet_distance: float  # to the real digits, unbiased covariances
    precision: float  # share of samples that lie among the real digits, k = 3
    recall: float  # share of real digits that lie among the samples: the diversity of the whole
    diversity: float  # mean distance of two samples of a class over that of two training digits; 0: all alike


@dataclass(frozen=True, kw_only=True)
class DigitsQuality(SampleQuality):
    """The same with that of real training digits (`real_*`): what a perfect generator would get."""

    real_accuracy: float  # of the classifier on the real digits that samples are compared with
    real_frechet_distance: float
    real_precision: float
    real_recall: float


@dataclass(frozen=True)
class Judge:
    """What measures samples: features, a classifier fitted on those of training digits, and these themselves."""

    features: Callable[[Tensor], Array]  # images [N, 1, S, S] in [-1, 1] -> [N, D] float64
    training: Array  # [n, D]
    labels: np.ndarray  # [n]

    @cached_property
    def classifier(self) -> SVC:
        """A support vector machine with a Gaussian kernel, fitted on the training digits."""
        from sklearn.svm import SVC  # here: takes seconds, and every rank of a run imports this module

        return SVC(C=10.0).fit(self.training, self.labels)

    def of_samples(self, samples: Tensor, labels: Tensor, real: Batch) -> SampleQuality:
        """Measures samples [N, 1, S, S], clipped to [-1, 1] as pictures are, made for labels [N] int64.

        The labels should be spread evenly over the classes, as they are over the real digits, and some class must occur
        twice. Raises DivergenceError if a sample is not finite.
        """
        if not samples.isfinite().all():
            raise DivergenceError("the generated digits are not finite numbers: the training had diverged")
        fake, asked = self.features(samples.clamp(-1, 1)), labels.detach().cpu().numpy()
        frechet, precision, recall = _against(self.features(real.x), fake)
        return SampleQuality(
            class_accuracy=float((self.classifier.predict(fake) == asked).mean()), frechet_distance=frechet,
            precision=precision, recall=recall, diversity=self._diversity(fake, asked),
        )

    def beside_real(self, samples: Tensor, labels: Tensor, real: Batch, *, count: int | None) -> DigitsQuality:
        """The same beside the measures of the first `count` training digits, or of all."""
        found, features = self.of_samples(samples, labels, real), self.features(real.x)
        frechet, precision, recall = _against(features, self.training[:count])
        return DigitsQuality(
            **asdict(found), real_accuracy=float(self.classifier.score(features, real.y.numpy())),
            real_frechet_distance=frechet, real_precision=precision, real_recall=recall,
        )

    def _diversity(self, fake: Array, asked: np.ndarray) -> float:
        ratios = [
            mean_pairwise_distance(fake[asked == label])
            / mean_pairwise_distance(self.training[self.labels == label])
            for label, count in zip(*np.unique(asked, return_counts=True), strict=True)
            if count > 1
        ]
        if not ratios:
            raise ValueError("diversity needs two samples of some class; every class asked for has one")
        return float(np.mean(ratios))


def _against(real: Array, features: Array) -> tuple[float, float, float]:
    distance = frechet_distance(*gaussian_statistics(features), *gaussian_statistics(real))
    return distance, *precision_recall(real, features, NUM_NEIGHBOURS)
