"""D's logits in its own turn, and how steep D is there, by finite differences (arXiv 2511.22475, Eq. 3-6).

    slope at a = (D(a + eps e) - D(a)) / eps,  e ~ N(0, I);   its square has the mean |grad D(a)|^2 for small eps

A rounding error of D's logit enters this divided by eps. With blocks in bf16 that is as large as the slope itself: the
mean square comes out 1.7 to 1.9 times too large, on the digits' discriminator after 600 steps. With blocks in float32
it is right to 1e-3 there, with their products rounded to TF32 to 6e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.types import Discriminator

Pair = Sequence[Tensor]
"""Of the real and of the fake samples."""


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """Finite-difference R1 and R2."""

    weight: float = 0.25  # l_gp, of each
    share: float = 0.25  # of the global batch, at least one sample
    epsilon: float = 0.01
    precise: bool | None = None  # slopes by a precise call of D; null: where parallel.precision is bf16 or fp8


class Judged(NamedTuple):
    real: Tensor  # [B] logits
    fake: Tensor  # [B]
    slope_real: Tensor  # [count]
    slope_fake: Tensor  # [count]


def judge(
    config: PenaltyConfig, discriminator: Discriminator, samples: Pair, noise: Pair, t: Tensor, y: Tensor, count: int
) -> Judged:
    """Logits of real and fake samples, [B, C, H, W] each, and slopes along `noise` at the first `count` of them.

    By one call of D. Where slopes are `precise`, a precise call judges the first `count` and their moved copies, and
    another one the rest: no sample is judged twice.
    """
    if config.precise:
        return _judge_precisely(config, discriminator, samples, noise, t, y, count)
    moved = [a[:count] + config.epsilon * e[:count] for a, e in zip(samples, noise, strict=True)]
    real, fake, *after = _logits(discriminator, (*samples, *moved), t, y)
    slopes = [(b - a[:count]) / config.epsilon for a, b in zip((real, fake), after, strict=True)]
    return Judged(real, fake, *slopes)


def _judge_precisely(
    config: PenaltyConfig, discriminator: Discriminator, samples: Pair, noise: Pair, t: Tensor, y: Tensor, count: int
) -> Judged:
    # A rank may have no sample for one of the calls, but takes part in every gathering of D's weights, forward and
    # backward: then it shows D one that does not count.
    probed, first = max(count, 1), min(count, len(y) - 1)
    others = _logits(discriminator, [a[first:] for a in samples], t[first:], y[first:])
    moved = [a[:probed] + config.epsilon * e[:probed] for a, e in zip(samples, noise, strict=True)]
    *before, after_real, after_fake = _logits(
        discriminator, (*(a[:probed] for a in samples), *moved), t, y, precise=True
    )
    logits = [torch.cat((a[:count], b[count - first:])) for a, b in zip(before, others, strict=True)]
    slopes = [(b - a) / config.epsilon for a, b in zip(before, (after_real, after_fake), strict=True)]
    return Judged(*logits, *(slope[:count] for slope in slopes))


def _logits(
    discriminator: Discriminator, samples: Sequence[Tensor], t: Tensor, y: Tensor, **options: bool
) -> tuple[Tensor, ...]:
    """One call of D; samples have the times and the labels of the first ones of the batch."""
    counts = [len(x) for x in samples]
    times, labels = (torch.cat([of[:count] for count in counts]) for of in (t, y))
    return discriminator(torch.cat(samples), times, labels, **options).split(counts)
