"""Discriminator augmentation (paper Algorithm 1): translation and erasing, the same draw for a real and a fake.

Each operation happens to each sample with the scheduled probability, by itself: one integer translation, then three
erasings. Both are linear in the sample, so gradients pass through them to the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..core.random import Draws
from ..core.ranges import Range, Share
from ..core.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    # of each operation for each sample; 0.4 in the published guidance phase
    probability: Annotated[Schedule, Range(0, 1)]
    translation: Share = 0.3  # largest shift along each axis, as a share of it; whole pixels, zeros move in
    num_erasings: Annotated[int, Range(0, 1_000)] = 3  # each by itself with that probability
    erased_low: Share = 0.1  # least area that one erasing sets to zero, as a share
    erased_high: Share = 0.5  # most area
    # height / width of an erased rectangle is log-uniform between 1 / aspect and aspect
    aspect: Annotated[float, Range(1, 1_000)] = 3.3


Augment = Callable[[Tensor], Tensor]


def paired_augmentation(
    config: AugmentationConfig | None, draws: Draws, shape: tuple[int, int], step: int
) -> Augment:
    """One turn's augmentation of [B, C, H, W] with (H, W) = shape: call it on real and on fake, it is the same."""
    probability = config.probability(step) if config else 0.0
    if config is None or probability == 0:
        return lambda x: x
    rows, columns, inside = _translation(config, draws, shape, probability)
    keep = _without_erased(inside, config, draws, probability)  # [B, H, W]

    def augment(x: Tensor) -> Tensor:
        x = x.gather(2, rows[:, None, :, None].expand_as(x))
        x = x.gather(3, columns[:, None, None, :].expand_as(x))
        return x * keep[:, None].to(x.dtype)

    return augment


def _translation(
    config: AugmentationConfig, draws: Draws, shape: tuple[int, int], probability: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Source row [B, H] and column [B, W] of every pixel, clamped, and whether it lay inside [B, H, W]."""
    happens = draws.uniform("translate") < probability
    sources, valid = [], []
    for axis, size in zip(("y", "x"), shape, strict=True):
        largest = math.floor(config.translation * size)
        shift = torch.floor(draws.uniform(f"translate {axis}") * (2 * largest + 1)).long() - largest
        index = torch.arange(size, device=shift.device) - (shift * happens)[:, None]
        valid.append((index >= 0) & (index < size))
        sources.append(index.clamp(0, size - 1))
    return sources[0], sources[1], valid[0][:, :, None] & valid[1][:, None, :]


def _without_erased(kept: Tensor, config: AugmentationConfig, draws: Draws, probability: float) -> Tensor:
    """[B, H, W] bool: those of the `kept` pixels [B, H, W] that no erasing hits."""
    height, width = kept.shape[1:]
    for number in range(config.num_erasings):
        happens, area, ratio, top, left = draws.uniform(f"erase {number}", shape=(5,)).unbind(1)
        area = (config.erased_low + (config.erased_high - config.erased_low) * area) * height * width
        ratio = torch.exp((2 * ratio - 1) * math.log(config.aspect))
        in_rows = _interval(torch.sqrt(area * ratio).round().clamp(1, height), top, height)  # [B, H]
        in_columns = _interval(torch.sqrt(area / ratio).round().clamp(1, width), left, width)  # [B, W]
        erased = in_rows[:, :, None] & in_columns[:, None, :] & (happens < probability)[:, None, None]
        kept = kept & ~erased
    return kept


def _interval(length: Tensor, place: Tensor, size: int) -> Tensor:
    """[B, size] bool: an interval of `length` [B] pixels, placed uniformly by `place` [B] in [0, 1)."""
    first = torch.floor(place * (size - length + 1))
    pixel = torch.arange(size, device=length.device)
    return (pixel >= first[:, None]) & (pixel < (first + length)[:, None])
