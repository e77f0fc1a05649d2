"""Captions of handwritten digits: "a thick seven, slanted to the right", by what is measured of the image.

    slant       m_xy / m_yy, central second moments of the ink: how far a row lies to the left of the one above it
    thickness   2 area / edge, of which the edge is the total variation of the ink: of a long bar it is the width

Both are in words by terciles: among the training digits of a class as many are slanted to the left as to the right, and
as many thin as thick. So the 90 captions are about equally frequent, and say something else of a one than of an eight.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .mnist import NUM_CLASSES, read_mnist

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SLANTS = (", slanted to the left", ", upright", ", slanted to the right")
THICKNESSES = ("thin ", "", "thick ")
_FAINT = 0.3  # of white


class Attributes(NamedTuple):
    """What a caption says."""

    digit: int  # 0 to 9
    slant: int  # 0 to 2, of `SLANTS`
    thickness: int  # 0 to 2, of `THICKNESSES`

    @property
    def caption(self) -> str:
        return self._of(DIGITS[self.digit])

    @property
    def of_any_digit(self) -> str:
        """The caption without saying which digit it is."""
        return self._of("digit")

    def _of(self, noun: str) -> str:
        return f"a {THICKNESSES[self.thickness]}{noun}{SLANTS[self.slant]}"


def every_attributes() -> list[Attributes]:
    """All there are; ten in a row are the ten digits."""
    return [
        Attributes(digit, slant, thickness) for slant in (1, 0, 2) for thickness in (1, 0, 2)
        for digit in range(NUM_CLASSES)
    ]


def every_caption() -> list[str]:
    return [attributes.caption for attributes in every_attributes()]


@cache
def _by_caption() -> dict[str, Attributes]:
    return {attributes.caption: attributes for attributes in every_attributes()}


def attributes_of(caption: str) -> Attributes | None:
    """What a caption says; None if it is no caption of a digit."""
    return _by_caption().get(caption)


def slants(images: Tensor) -> Tensor:
    """[N] float64, positive to the right as letters are slanted, of images [N, 1, H, W] in [-1, 1]. 0 without ink."""
    ink = _ink(images)
    mass = ink.sum((1, 2)).clamp_min(1e-9)
    y, x = (torch.arange(size, dtype=ink.dtype, device=ink.device) for size in ink.shape[1:])
    x = x - (ink * x).sum((1, 2))[:, None] / mass[:, None]  # [N, W]
    y = y - (ink * y[:, None]).sum((1, 2))[:, None] / mass[:, None]  # [N, H], downwards
    mixed = torch.einsum("nhw,nh,nw->n", ink, y, x)
    vertical = torch.einsum("nhw,nh->n", ink, y.square())
    return -mixed / vertical.clamp_min(1e-9)


def thicknesses(images: Tensor) -> Tensor:
    """[N] float64 in pixels, of images [N, 1, H, W] in [-1, 1]. 0 without ink."""
    ink = torch.nn.functional.pad(_ink(images), (1, 1, 1, 1))
    across, down = ink.diff(dim=2)[:, :-1, :], ink.diff(dim=1)[:, :, :-1]
    edge = torch.hypot(across, down).sum((1, 2))
    return 2 * ink.sum((1, 2)) / edge.clamp_min(1e-9)


def _ink(images: Tensor) -> Tensor:
    """[N, H, W] float64 from 0 to 1, without what is fainter than the grey that generators leave behind."""
    shares = (images.detach().double().squeeze(1).clamp(-1, 1) + 1) / 2
    return (shares - _FAINT).clamp_min(0) / (1 - _FAINT)


class Thresholds(NamedTuple):
    """Between the words, for each class: [10, 2] each."""

    slant: Tensor
    thickness: Tensor

    def measured(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Slant and thickness, [N] int64 each from 0 to 2, of images [N, 1, H, W] that are taken for these digits."""
        return (
            (slants(images)[:, None] > self.slant[labels]).sum(1),
            (thicknesses(images)[:, None] > self.thickness[labels]).sum(1),
        )


@cache
def thresholds_of(file: Path) -> Thresholds:
    """Terciles of the training part of a file as `data.kind: mnist` reads it. Raises DataError if it cannot be used."""
    digits = read_mnist(file, "train")
    third = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    found = [
        torch.stack([
            values[digits.y == label].quantile(third) if bool((digits.y == label).any()) else third
            for label in range(NUM_CLASSES)
        ])
        for values in (slants(digits.x), thicknesses(digits.x))
    ]
    return Thresholds(*found)


def described(file: Path, images: Tensor, labels: Tensor) -> list[Attributes]:
    """What is to be said of images [N, 1, 28, 28] of digits `labels` [N], by the terciles of the file."""
    slant, thickness = thresholds_of(file).measured(images, labels)
    return [Attributes(*one) for one in zip(labels.tolist(), slant.tolist(), thickness.tolist(), strict=True)]
