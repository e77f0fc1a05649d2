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
from torch import Tensor

from ...core.errors import ConfigError, DataError
from ...core.ranges import Count, Range, Seed
from ...data.source import SourceConfig
from ...data.toys.mnist import MnistConfig, MnistSource, read_mnist
from ...parallel.agreement import from_rank_0
from ...sampling.subject import Subject
from ..measurement import Findings, OfGenerator
from ..statistics import Array
from .digits import draw_digits
from .judge import DigitsQuality, Judge

NUM_COMPONENTS = 64
Compared = Literal["tune", "test"]


def mnist_quality(samples: Tensor, labels: Tensor, *, file: Path, part: Compared) -> DigitsQuality:
    """Measures samples [N, 1, 28, 28] made for labels [N] int64 beside as many real ones as the part has.

    Raises DivergenceError if a sample is not finite, DataError if the file cannot be used.
    """
    real = read_mnist(file, part)
    return judge_of(file).beside_real(samples, labels, real, count=len(real.y))


@cache
def judge_of(file: Path) -> Judge:
    """Fitted on the training part of a file. Its training digits are in an order that is mixed for good."""
    digits = read_mnist(file, "train")
    mixed = np.random.default_rng(0).permutation(len(digits.y))
    pixels, labels = _flat(digits.x)[mixed], digits.y.numpy()[mixed]
    if len(np.unique(labels)) < 2 or len(labels) <= NUM_COMPONENTS:
        raise DataError(
            f"data.file {file} has {len(labels)} training digits of {len(np.unique(labels))} class(es): too few to "
            f"judge others by; at least two classes and {NUM_COMPONENTS + 1} training digits are needed"
        )
    from sklearn.decomposition import PCA  # here: takes seconds, and every rank of a run imports this module

    pca = PCA(NUM_COMPONENTS, svd_solver="full").fit(pixels)
    return Judge(lambda images: pca.transform(_flat(images)), pca.transform(pixels), labels)


def _flat(images: Tensor) -> Array:
    return images.detach().to("cpu").double().flatten(1).numpy()


def check_part(data: SourceConfig, part: Compared, setting: str, of: type[SourceConfig] = MnistConfig) -> None:
    """Raises ConfigError if samples cannot be compared with that part of what is trained on, or should not be."""
    if not isinstance(data, of):
        raise ConfigError(
            f"{setting}.kind {of.kind!r} compares samples with data.file of data.kind {of.kind!r}, but data.kind is "
            f"{data.kind!r}; set another {setting}, or {setting}=null"
        )
    if data.part == part:
        raise ConfigError(
            f"{setting}.part {part!r} is what data.part trains on; set data.part=train, or another {setting}.part"
        )


@dataclass(frozen=True, kw_only=True)
class MnistReport(OfGenerator):
    """Measures samples against the tune or test part of the data's own file, and draws ten of each class."""

    kind: Literal["mnist"] = "mnist"
    part: Compared = "test"  # settings are chosen on tune, figures are stated of test
    # balanced over the classes; as many as the parts of 10,000 digits have
    num_samples: Annotated[int, Range(100, 1_000_000)] = 1000
    seed: Seed = 0  # of the noises
    upscale: Annotated[int, Range(1, 64)] = 3  # of the picture: pixels per pixel

    def check(self, data: SourceConfig, setting: str) -> None:
        check_part(data, self.part, setting)

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`."""
        assert isinstance(subject.source, MnistSource)
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)
        if subject.place.rank == 0:
            draw_digits(picture, images[:100], upscale=self.upscale)
        found = mnist_quality(images.float(), labels, file=subject.source.file, part=self.part)
        return {"compared_with": f"the {self.part} part", **asdict(found)}


@dataclass(frozen=True, kw_only=True)
class MnistEvaluation(OfGenerator):
    """The same numbers while a generator trains: fixed noises, and classes in turn."""

    kind: Literal["mnist"] = "mnist"
    every_steps: Count  # between two evaluations
    part: Compared = "tune"  # what samples are compared with; the report's is for the last word
    num_samples: Annotated[int, Range(100, 1_000_000)] = 1000  # balanced over the classes; as many as the report's
    seed: Seed = 0  # of the noises, the same every time

    def check(self, data: SourceConfig, setting: str) -> None:
        check_part(data, self.part, setting)

    def figures(self, subject: Subject) -> dict[str, float]:
        """Collective; measured on rank 0."""
        assert isinstance(subject.source, MnistSource)
        file = subject.source.file
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)

        def measure() -> dict[str, float]:
            return asdict(judge_of(file).of_samples(images.float(), labels, read_mnist(file, self.part)))

        return from_rank_0(subject.place.rank, measure)
