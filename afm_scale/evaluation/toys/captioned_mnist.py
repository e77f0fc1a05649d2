"""How generated digits follow their captions: the digit by a classifier, slant and thickness as captions measure them.

The classifier, and all that is told of quality beside it, are those of `mnist.py`, where the class is the digit that is
asked for. A caption of middle thickness says nothing of it, and is right with any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from ...core.errors import ConfigError, DivergenceError
from ...core.ranges import Count, Range, Seed
from ...data.source import SourceConfig
from ...data.toys.captioned_mnist import CaptionedMnistConfig, CaptionedMnistSource
from ...data.toys.captions import THICKNESSES, Attributes, attributes_of, thresholds_of
from ...data.toys.mnist import read_mnist
from ...parallel.agreement import from_rank_0
from ...sampling.pictures import image_grid, save_png
from ...sampling.subject import Subject
from ..following import following
from ..measurement import Findings, OfGenerator
from .mnist import Compared, check_part, judge_of

_COLUMNS, _DRAWN = 10, 90  # of the picture


@dataclass(frozen=True)
class CaptionChecker:
    """A `following.Checker` of captions, by the training part of a file of digits."""

    file: Path

    def asked(self, prompt: str) -> Sequence[str]:
        return ("digit", "slant", "thickness") if THICKNESSES[_wanted(prompt).thickness] else ("digit", "slant")

    def held(self, samples: Tensor, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        judge, wanted = judge_of(self.file), [_wanted(prompt) for prompt in prompts]
        digits, slants, thicknesses = (torch.tensor(column) for column in zip(*wanted, strict=True))
        found = torch.from_numpy(judge.classifier.predict(judge.features(samples.clamp(-1, 1))))
        slant, thickness = thresholds_of(self.file).measured(samples, digits)
        return {"digit": found == digits, "slant": slant == slants, "thickness": thickness == thicknesses}


def _wanted(prompt: str) -> Attributes:
    wanted = attributes_of(prompt)
    if wanted is None:
        raise ConfigError(
            f"the prompt {prompt[:80]!r} is no caption of a digit, and cannot be judged by one; set data.shown to "
            "captions (docs/text.md), or another report and hooks.evaluation"
        )
    return wanted


def caption_scores(samples: Tensor, prompts: Sequence[str], file: Path) -> dict[str, float]:
    """`following.following` of samples [N, 1, 28, 28] drawn for captions.

    Raises DivergenceError if a sample is not finite, ConfigError if a prompt is no caption.
    """
    if not samples.isfinite().all():
        raise DivergenceError("the generated digits are not finite numbers: the training had diverged")
    return following(CaptionChecker(file), samples, prompts)


def _figures(source: CaptionedMnistSource, images: Tensor, labels: Tensor, part: Compared) -> dict[str, float]:
    prompts = [source.texts[label] for label in labels.tolist()]
    scores = caption_scores(images, prompts, source.file)
    digits = torch.tensor([_wanted(prompt).digit for prompt in prompts])
    return {**scores, **asdict(judge_of(source.file).of_samples(images, digits, read_mnist(source.file, part)))}


def name_of_row(captions: Sequence[str]) -> str:
    """What they say alike of any digit, or else the first of them."""
    said = [attributes_of(caption) for caption in captions]
    names = {attributes.of_any_digit for attributes in said if attributes is not None}
    return names.pop() if len(names) == 1 and None not in said else captions[0]


@dataclass(frozen=True, kw_only=True)
class CaptionedMnistReport(OfGenerator):
    """Measures how samples follow captions, and how good they are against a part of the file; draws the first ones."""

    kind: Literal["captioned_mnist"] = "captioned_mnist"
    part: Compared = "test"  # settings are chosen on tune, figures are stated of test
    # the prompts in turn; as many as the parts of 10,000 digits have, about
    num_samples: Annotated[int, Range(90, 1_000_000)] = 990
    seed: Seed = 0  # of the noises
    upscale: Annotated[int, Range(1, 64)] = 2  # of the picture: pixels per pixel

    def check(self, data: SourceConfig, setting: str) -> None:
        check_part(data, self.part, setting, CaptionedMnistConfig)

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`."""
        source = subject.source
        assert isinstance(source, CaptionedMnistSource)
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)
        images = images.float()

        def measure() -> dict[str, float]:
            asked = [source.texts[label] for label in labels[:_DRAWN].tolist()]
            rows = [name_of_row(asked[first:first + _COLUMNS]) for first in range(0, _DRAWN, _COLUMNS)]
            sheet = image_grid(images[:_DRAWN], columns=_COLUMNS, upscale=self.upscale, row_labels=rows)
            save_png(sheet, picture)
            return _figures(source, images, labels, self.part)

        return {"compared_with": f"the {self.part} part", **from_rank_0(subject.place.rank, measure)}


@dataclass(frozen=True, kw_only=True)
class CaptionedMnistEvaluation(OfGenerator):
    """The same numbers while a generator trains: fixed noises, and prompts in turn."""

    kind: Literal["captioned_mnist"] = "captioned_mnist"
    every_steps: Count  # between two evaluations
    part: Compared = "tune"  # what samples are compared with; the report's is for the last word
    num_samples: Annotated[int, Range(90, 1_000_000)] = 990  # as many as the report's
    seed: Seed = 0  # of the noises, the same every time

    def check(self, data: SourceConfig, setting: str) -> None:
        check_part(data, self.part, setting, CaptionedMnistConfig)

    def figures(self, subject: Subject) -> dict[str, float]:
        """Collective; measured on rank 0."""
        source = subject.source
        assert isinstance(source, CaptionedMnistSource)
        images, labels = subject.generate(subject.stream(seed=self.seed), self.num_samples)
        return from_rank_0(subject.place.rank, lambda: _figures(source, images.float(), labels, self.part))
