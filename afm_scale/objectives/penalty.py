"""D's logits in its own turn, and how steep D is there, by finite differences (arXiv 2511.22475, Eq. 3-6).

    slope at a = (D(a + eps e) - D(a)) / eps,  e ~ N(0, I);   its square has the mean |grad D(a)|^2 for small eps

A rounding error of D's logit enters this divided by eps. With blocks in bf16 that is as large as the slope itself: the
mean square comes out 1.7 to 1.9 times too large, on the digits' discriminator after 600 steps. With blocks in float32
it is right to 1e-3 there, with their products rounded to TF32 to 6e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..core.random import Draws
from ..core.ranges import Range
from ..core.types import Discriminator

Pair = Sequence[Tensor]
"""One value for the real and one for the fake samples."""


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """Finite-difference R1 and R2."""

    weight: Annotated[float, Range(0, 1e6)] = 0.25  # l_gp, of each
    share: Annotated[float, Range(above=0, high=1)] = 0.25  # of the global batch, at least one sample
    epsilon: Annotated[float, Range(above=0, high=10)] = 0.01  # standard deviation of the step from a sample
    precise: bool | None = None  # slopes by a precise call of D; null: where parallel.precision is bf16 or fp8


class Verdict(NamedTuple):
    """D's logits of all samples, and its slopes at those `count` that are penalised: the first ones."""

    real: Tensor  # [B]
    fake: Tensor  # [B]
    slope_real: Tensor  # [count]
    slope_fake: Tensor  # [count]
    part: float  # what one of them counts in the mean over all that are penalised

    @property
    def count(self) -> int:
        return len(self.slope_real)

    def mean(self, values: Tensor) -> Tensor:
        """This microbatch's term in the mean of values [count] over the penalised share of the global batch, []."""
        return (self.part * values).sum()


def judge(
    config: PenaltyConfig, discriminator: Discriminator, samples: Pair, t: Tensor, y: Tensor, draws: Draws
) -> Verdict:
    """What D says of real and fake samples, [B, C, H, W] each.

    By one call of D. Where slopes are `precise`, a precise call judges the penalised samples and their moved copies,
    and another one the rest: no sample is judged twice.
    """
    positions = draws.positions
    num_penalised = max(round(positions.total * config.share), 1)  # in the global batch
    count = positions.below(num_penalised)  # of them in this microbatch
    # A microbatch's loss is averaged over all `stride` of them; dividing by the global count makes that the mean.
    part = positions.stride / num_penalised
    shape, dtype = samples[0].shape[1:], samples[0].dtype
    noise = [draws.normal(name, shape).to(dtype) for name in ("r1 noise", "r2 noise")]
    found = _judge_precisely if config.precise else _judge
    return Verdict(*found(config, discriminator, samples, noise, t, y, count), part)


def _judge(
    config: PenaltyConfig, discriminator: Discriminator, samples: Pair, noise: Pair, t: Tensor, y: Tensor, count: int
) -> tuple[Tensor, ...]:
    moved = [a[:count] + config.epsilon * e[:count] for a, e in zip(samples, noise, strict=True)]
    real, fake, *after = _logits(discriminator, (*samples, *moved), t, y)
    slopes = [(b - a[:count]) / config.epsilon for a, b in zip((real, fake), after, strict=True)]
    return real, fake, *slopes


def _judge_precisely(
    config: PenaltyConfig, discriminator: Discriminator, samples: Pair, noise: Pair, t: Tensor, y: Tensor, count: int
) -> tuple[Tensor, ...]:
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
    return *logits, *(slope[:count] for slope in slopes)


def _logits(
    discriminator: Discriminator, samples: Sequence[Tensor], t: Tensor, y: Tensor, **options: bool
) -> tuple[Tensor, ...]:
    """One call of D; samples have the times and the labels of the first ones of the batch."""
    counts = [len(x) for x in samples]
    times, labels = (torch.cat([values[:count] for count in counts]) for values in (t, y))
    return discriminator(torch.cat(samples), times, labels, **options).split(counts)
