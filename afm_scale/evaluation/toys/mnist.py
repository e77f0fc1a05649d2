"""How good generated digits of 28x28 pixels are, against a part of the file that no run is trained on.

Distances are taken between the 64 first principal components of the pixels in [-1, 1], those of the training part: a
linear map, fixed by the file alone, that keeps 87 percent of the variance of real digits. Classes are judged by a
classifier fitted on the same components of the training part. Both take some seconds on one core, once per file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.svm import SVC
from torch import Tensor

from ...core.errors import ConfigError, DataError, DivergenceError
from ...core.ranges import Range, Seed
from ...core.types import Batch
from ...data.source import SourceConfig
from ...data.toys.mnist import MnistConfig, MnistSource, read_mnist
from ...sampling.subject import Subject
from ..measurement import Findings, OfGenerator
from ..statistics import Array, frechet_distance, gaussian_statistics, mean_pairwise_distance, precision_recall
from .digits import draw_digits

NUM_COMPONENTS = 64
NUM_NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class MnistQuality:
    """Measures of samples, and the same of real training digits (`real_*`): what a perfect generator would get.

    The real ones are as many as there are digits to compare with. A Frechet distance, precision and recall depend on
    the number of samples, so compare figures of equal numbers alone.
    """

    class_accuracy: float  # share of samples that the classifier takes for the class that was asked for
    frechet_distance: float  # unbiased covariances of the components
    precision: float  # share of samples that lie among the real digits, k = 3
    recall: float  # share of real digits that lie among the samples: the diversity of the whole
    diversity: float  # mean distance of two samples of a class over that of two training digits; 0: all alike
    real_accuracy: float  # of the classifier on the real digits that samples are compared with
    real_frechet_distance: float
    real_precision: float
    real_recall: float


def mnist_quality(samples: Tensor, labels: Tensor, *, file: Path, part: Literal["tune", "test"]) -> MnistQuality:
    """Measures samples [N, 1, 28, 28], clipped to [-1, 1] as pictures are, made for labels [N] int64.

    The labels should be spread evenly over the ten classes, and some class must occur twice. Raises DivergenceError if
    a sample is not finite, DataError if the file cannot be used.
    """
    if not torch.isfinite(samples).all():
        raise DivergenceError("the generated digits are not finite numbers: the training had diverged")
    judge, asked = _judge(file), labels.detach().cpu().numpy()
    fake = judge.components(samples.clamp(-1, 1))
    real, real_labels = judge.features(read_mnist(file, part))
    frechet, precision, recall = _against(real, fake)
    real_frechet, real_precision, real_recall = _against(real, judge.training[:len(real)])
    return MnistQuality(
        class_accuracy=float((judge.classifier.predict(fake) == asked).mean()),
        frechet_distance=frechet, precision=precision, recall=recall, diversity=judge.diversity(fake, asked),
        real_accuracy=float(judge.classifier.score(real, real_labels)), real_frechet_distance=real_frechet,
        real_precision=real_precision, real_recall=real_recall,
    )


@dataclass(frozen=True)
class _Judge:
    """What is fitted on the training part, and that part's components in an order that is mixed for good."""

    pca: PCA
    classifier: SVC  # with a Gaussian kernel
    training: Array  # [n, 64]
    labels: np.ndarray  # [n]

    def components(self, images: Tensor) -> Array:
        """[N, 1, 28, 28] -> [N, 64] float64."""
        return self.pca.transform(_flat(images))

    def features(self, digits: Batch) -> tuple[Array, np.ndarray]:
        return self.components(digits.x), digits.y.numpy()

    def diversity(self, fake: Array, asked: np.ndarray) -> float:
        ratios = [
            mean_pairwise_distance(fake[asked == label])
            / mean_pairwise_distance(self.training[self.labels == label])
            for label, count in zip(*np.unique(asked, return_counts=True), strict=True)
            if count > 1
        ]
        if not ratios:
            raise ValueError("diversity needs two samples of some class; every class asked for has one")
        return float(np.mean(ratios))


@cache
def _judge(file: Path) -> _Judge:
    digits = read_mnist(file, "train")
    mixed = np.random.default_rng(0).permutation(len(digits.y))
    pixels, labels = _flat(digits.x)[mixed], digits.y.numpy()[mixed]
    if len(np.unique(labels)) < 2 or len(labels) <= NUM_COMPONENTS:
        raise DataError(
            f"data.file {file} has {len(labels)} training digits of {len(np.unique(labels))} class(es): too few to "
            f"judge others by; at least two classes and {NUM_COMPONENTS + 1} training digits are needed"
        )
    pca = PCA(NUM_COMPONENTS, svd_solver="full").fit(pixels)
    training = pca.transform(pixels)
    return _Judge(pca, SVC(C=10.0).fit(training, labels), training, labels)


def _flat(images: Tensor) -> Array:
    return images.detach().to("cpu", torch.float64).flatten(1).numpy()


def _against(real: Array, features: Array) -> tuple[float, float, float]:
    distance = frechet_distance(*gaussian_statistics(features), *gaussian_statistics(real))
    return distance, *precision_recall(real, features, NUM_NEIGHBOURS)


@dataclass(frozen=True, kw_only=True)
class MnistReport(OfGenerator):
    """Measures samples against the tune or test part of the data's own file, and draws ten of each class."""

    kind: Literal["mnist"] = "mnist"
    part: Literal["tune", "test"] = "test"  # settings are chosen on tune, figures are stated of test
    # balanced over the classes; as many as the parts of 10,000 digits have
    num_samples: Annotated[int, Range(100, 1_000_000)] = 1000
    seed: Seed = 0  # of the noises
    upscale: Annotated[int, Range(1, 64)] = 3  # of the picture: pixels per pixel

    def check(self, data: SourceConfig, setting: str) -> None:
        if not isinstance(data, MnistConfig):
            raise ConfigError(
                f"{setting}.kind 'mnist' compares samples with data.file of data.kind 'mnist', but data.kind is "
                f"{data.kind!r}; set another {setting}, or {setting}=null"
            )
        if data.part == self.part:
            raise ConfigError(
                f"{setting}.part {self.part!r} is what data.part trains on; set data.part=train, or another "
                f"{setting}.part"
            )

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`."""
        assert isinstance(subject.source, MnistSource)
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)
        if subject.place.rank == 0:
            draw_digits(picture, images[:100], upscale=self.upscale)
        found = mnist_quality(images.float(), labels, file=subject.source.file, part=self.part)
        return {"compared_with": f"the {self.part} part", **asdict(found)}
