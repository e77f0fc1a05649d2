"""Turns, shifts and enlarges images at random: the augmentation of the guiding classifier (AFM paper, section 4.1).

It comes before the crop, on the whole image, so that what moves into the square is most often real. What is still
missing is the image reflected at its outermost pixels, which are not repeated: d c b | a b c d | c b a (`reflect` in
numpy and torch, `mirror` in scipy), as often as it takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..core.errors import ConfigError
from ..core.random import KeyedDraws, Positions
from ..core.ranges import Range, Share

_BAND = 2**16  # pixels computed at a time: for an original of 50 megapixels, coordinates and results would take 1 GB


@dataclass(frozen=True, kw_only=True)
class AffineConfig:
    """What may happen to a draw; each number is uniform in its range. Defaults: the published classifier's."""

    probability: Share = 0.8  # that a draw is changed at all
    degrees: Annotated[float, Range(0, 180)] = 10.0  # largest rotation, either way
    translation: Share = 0.3  # largest shift along each axis, as a share of the side, either way
    scale_low: Annotated[float, Range(above=0, high=100)] = 1.0  # least enlargement, the same along both axes
    scale_high: Annotated[float, Range(above=0, high=100)] = 1.3  # largest enlargement

    def __post_init__(self) -> None:
        if self.scale_low > self.scale_high:
            raise ConfigError(
                f"scale_low is {self.scale_low} and scale_high {self.scale_high}, wanted scale_low <= scale_high"
            )


class Affine(NamedTuple):
    """Enlarged and turned about the centre of the image, then shifted."""

    angle: float  # radians, anticlockwise as one sees it
    right: float  # share of the width
    down: float  # share of the height
    scale: float


def affines_at(config: AffineConfig | None, positions: Positions, *, seed: int) -> list[Affine | None]:
    """What happens to the draw at each of B stream positions, a function of (seed, position) alone; None: nothing."""
    if config is None:
        return [None] * positions.count
    draws = KeyedDraws("affine", seed, positions=positions).uniform("affine", shape=(5,))  # [B, 5]
    return [
        Affine(
            angle=math.radians((2 * turn - 1) * config.degrees),
            right=(2 * right - 1) * config.translation,
            down=(2 * down - 1) * config.translation,
            scale=config.scale_low + (config.scale_high - config.scale_low) * larger,
        )
        if happens < config.probability else None
        for happens, turn, right, down, larger in draws.tolist()
    ]


def moved(image: Image.Image, affine: Affine) -> Image.Image:
    """8-bit RGB of any size -> the same size, bilinear, rounded to the nearest grey level."""
    width, height = image.size
    # One plane a channel: interleaved, as Pillow has them, they take torch longer.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    result = torch.empty(3, height, width, dtype=torch.uint8)
    band = max(1, _BAND // width)
    for top in range(0, height, band):
        grid = _grid(width, height, affine, range(top, min(top + band, height)))
        part = F.grid_sample(pixels[None], grid, mode="bilinear", padding_mode="reflection", align_corners=True)
        result[:, top:top + band] = part[0].add_(0.5)  # the conversion cuts the fraction off
    return Image.merge("RGB", [Image.fromarray(plane) for plane in result.numpy()])


def _grid(width: int, height: int, affine: Affine, rows: range) -> torch.Tensor:
    """[1, R, W, 2] float32: where each pixel of R rows of the result comes from, (x, y).

    -1 and 1 are the centres of the outermost pixels, as `grid_sample` has it with `align_corners`.
    """
    cosine, sine = math.cos(affine.angle) / affine.scale, math.sin(affine.angle) / affine.scale
    # From the centre, the shift undone.
    x = torch.arange(width, dtype=torch.float64) - ((width - 1) / 2 + affine.right * width)
    y = torch.arange(rows.start, rows.stop, dtype=torch.float64) - ((height - 1) / 2 + affine.down * height)
    grid = torch.empty(1, len(rows), width, 2)
    for axis, (of_x, of_y, side) in enumerate([(cosine, -sine, width), (sine, cosine, height)]):
        unit = 2 / max(side - 1, 1)
        torch.add((of_y * unit * y).float()[:, None], (of_x * unit * x).float(), out=grid[0, :, :, axis])
    return grid
