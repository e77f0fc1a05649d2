"""How good generated digits are, in the 64-d space of their pixels in [-1, 1], against digits not trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor

from ...core.errors import ConfigError
from ...core.ranges import Count, Range, Seed
from ...data.source import SourceConfig
from ...data.toys.digits import DigitsConfig, digits_of
from ...parallel.agreement import from_rank_0
from ...sampling.pictures import image_grid, save_png
from ...sampling.subject import Subject
from ..measurement import Findings, OfGenerator, check_shape
from ..statistics import Array
from .judge import DigitsQuality, Judge

Compared = Literal["tune", "test"]


def digits_quality(samples: Tensor, labels: Tensor, part: Compared = "test") -> DigitsQuality:
    """Measures samples [N, 1, 8, 8] made for labels [N] int64 against a part of the digits.

    Of the real ones a perfect generator would get, against the test part, class accuracy 0.994, Frechet distance 0.417,
    precision 0.93 and recall 0.89; the Frechet distance of Gaussian noise is 62, of the same noise clipped 45. Raises
    DivergenceError if a sample is not finite.
    """
    return _judge(part).beside_real(samples, labels, digits_of(part), count=None)


@cache
def _judge(part: Compared) -> Judge:
    """Fitted on training digits alone: where some are kept to choose settings by, without these."""
    digits = digits_of("train" if part == "tune" else "all")
    return Judge(_flat, _flat(digits.x), digits.y.numpy())


def _flat(images: Tensor) -> Array:
    return images.detach().to("cpu").double().flatten(1).numpy()


def draw_digits(path: Path, images: Tensor, *, upscale: int) -> None:
    """Draws [100, 1, S, S] of the classes 0, 1, ... 9 in turn to a PNG: a row for each class."""
    by_class = images.unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
    names = [str(label) for label in range(10)]
    save_png(image_grid(by_class, columns=10, upscale=upscale, row_labels=names), path)


def check_part(data: SourceConfig, part: Compared, setting: str) -> None:
    """Raises ConfigError if the digits that samples would be compared with are trained on."""
    if part == "tune" and isinstance(data, DigitsConfig) and data.part == "all":
        raise ConfigError(
            f"{setting}.part 'tune' compares samples with digits that data.part 'all' trains on; set data.part=train, "
            f"or {setting}.part=test"
        )


@dataclass(frozen=True, kw_only=True)
class DigitsReport(OfGenerator):
    """Measures samples against digits that are not trained on and draws ten of each class."""

    kind: Literal["digits"] = "digits"
    part: Compared = "test"  # settings are chosen on tune, with data.part=train; figures are stated of test
    # balanced over the classes; recall depends a little on it
    num_samples: Annotated[int, Range(100, 1_000_000)] = 1440
    seed: Seed = 0  # of the noises
    upscale: Annotated[int, Range(1, 64)] = 6  # of the picture: pixels per pixel

    def check(self, data: SourceConfig, setting: str) -> None:
        check_shape(data, DigitsConfig.shape, DigitsConfig.num_classes, setting, self.kind)
        check_part(data, self.part, setting)

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`."""
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)
        if subject.place.rank == 0:
            draw_digits(picture, images[:100], upscale=self.upscale)
        found = digits_quality(images.float(), labels, self.part)
        return {"compared_with": f"the {self.part} part", **asdict(found)}


@dataclass(frozen=True, kw_only=True)
class DigitsEvaluation(OfGenerator):
    """The same numbers while a generator trains: fixed noises, and classes in turn."""

    kind: Literal["digits"] = "digits"
    every_steps: Count  # between two evaluations
    part: Compared = "tune"  # what samples are compared with; tune: with data.part=train
    num_samples: Annotated[int, Range(100, 1_000_000)] = 1440  # balanced over the classes; as many as the report's
    seed: Seed = 0  # of the noises, the same every time

    def check(self, data: SourceConfig, setting: str) -> None:
        check_shape(data, DigitsConfig.shape, DigitsConfig.num_classes, setting, self.kind)
        check_part(data, self.part, setting)

    def figures(self, subject: Subject) -> dict[str, float]:
        """Collective; measured on rank 0."""
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)

        def measure() -> dict[str, float]:
            return asdict(_judge(self.part).of_samples(images.float(), labels, digits_of(self.part)))

        return from_rank_0(subject.place.rank, measure)
