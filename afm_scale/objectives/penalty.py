"""D's logits in its own turn, and how steep D is there, by finite differences (arXiv 2511.22475, Eq. 3-6).

    slope at a = (D(a + eps e) - D(a)) / eps,  e ~ N(0, I);   its square has the mean |grad D(a)|^2 for small eps

A rounding error of D's logit enters this divided by eps. With blocks in bf16 that is as large as the slope itself: the
mean square comes out 1.7 to 1.9 times too large, on the digits' discriminator after 600 steps. With blocks in float32
it is right to 1e-3 there, with their products rounded to TF32 to 6e-3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

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
    # both: R1 and R2; r1: at real samples alone; in_turn: R1 in even updates and R2 in odd ones, with twice the weight
    terms: Literal["both", "r1", "in_turn"] = "both"
    epsilon: Annotated[float, Range(above=0, high=10)] = 0.01  # standard deviation of the step from a sample
    precise: bool | None = None  # slopes by a precise call of D; null: where parallel.precision is bf16 or fp8

    def sides(self, step: int) -> tuple[bool, bool]:
        """Whether real and fake samples are penalised in this update."""
        return {"both": (True, True), "r1": (True, False), "in_turn": (step % 2 == 0, step % 2 == 1)}[self.terms]


class Verdict(NamedTuple):
    """D's logits of all samples, and its slopes at those `count` that are penalised: the first ones."""

    real: Tensor  # [B]
    fake: Tensor  # [B]
    slope_real: Tensor  # [count], 0 where real samples are not penalised now
    slope_fake: Tensor  # [count], likewise
    part: float  # what one of them counts in the mean over all that are penalised

    @property
    def count(self) -> int:
        return len(self.slope_real)

    def mean(self, values: Tensor) -> Tensor:
        """This microbatch's term in the mean of values [count] over the penalised share of the global batch, []."""
        return (self.part * values).sum()


class _Rows(NamedTuple):
    """Samples that D is shown together, and which of the batch they are of."""

    x: Tensor
    where: slice


def judge(
    config: PenaltyConfig, discriminator: Discriminator, samples: Pair, t: Tensor, y: Tensor, draws: Draws,
    step: int = 0, shown: Mapping[str, Any] = MappingProxyType({}),
) -> Verdict:
    """What D says of real and fake samples, [B, C, H, W] each.

    By one call of D, which is told what is `shown` of each. Where slopes are `precise`, a precise call judges the
    penalised samples and their moved copies, and another one the rest: no sample is judged twice. Moved copies pass no
    gradient on to the samples.
    """
    positions = draws.positions
    num_penalised = max(round(positions.total * config.share), 1)  # in the global batch
    count = positions.below(num_penalised)  # of them in this microbatch
    # A microbatch's loss is averaged over all `stride` of them; dividing by the global count makes that the mean.
    part = positions.stride / num_penalised * (2 if config.terms == "in_turn" else 1)
    shape, dtype = samples[0].shape[1:], samples[0].dtype
    is_penalised = config.sides(step)
    # A rank may have no sample for a precise call, but takes part in every gathering of D's weights, forward and
    # backward: then it shows D one that does not count. So it does where all its samples are in the precise call.
    probed = max(count, 1) if config.precise else count
    moved = [
        _Rows(a[:probed].detach() + config.epsilon * draws.normal(name, shape).to(dtype)[:probed], slice(probed))
        for a, name, is_so in zip(samples, ("r1 noise", "r2 noise"), is_penalised, strict=True) if is_so
    ]
    call = _precisely if config.precise else _at_once
    (real, fake), after = call(discriminator, samples, moved, is_penalised, count, t, y, shown)
    slopes = [
        (after.pop(0)[:count] - logits[:count]) / config.epsilon if is_so else logits.new_zeros(count)
        for logits, is_so in zip((real, fake), is_penalised, strict=True)
    ]
    return Verdict(real, fake, slopes[0], slopes[1], part)


def _at_once(
    discriminator: Discriminator, samples: Pair, moved: Sequence[_Rows], is_penalised: Sequence[bool], count: int,
    t: Tensor, y: Tensor, shown: Mapping[str, Any],
) -> tuple[Sequence[Tensor], list[Tensor]]:
    """Logits of real and of fake samples, and of the moved copies."""
    logits = _logits(discriminator, [*(_Rows(a, slice(None)) for a in samples), *moved], t, y, shown)
    return logits[:2], list(logits[2:])


def _precisely(
    discriminator: Discriminator, samples: Pair, moved: Sequence[_Rows], is_penalised: Sequence[bool], count: int,
    t: Tensor, y: Tensor, shown: Mapping[str, Any],
) -> tuple[Sequence[Tensor], list[Tensor]]:
    first = min(count, len(y) - 1)
    starts = [first if is_so else 0 for is_so in is_penalised]
    others = [_Rows(a[start:], slice(start, None)) for a, start in zip(samples, starts, strict=True)]
    of_others = _logits(discriminator, others, t, y, shown)
    clean = [a for a, is_so in zip(samples, is_penalised, strict=True) if is_so]
    probed = [_Rows(a[rows.where], rows.where) for a, rows in zip(clean, moved, strict=True)]
    found = list(_logits(discriminator, [*probed, *moved], t, y, shown, precise=True))
    logits = [
        torch.cat((found.pop(0)[:count], rest[count - first:])) if is_so else rest
        for rest, is_so in zip(of_others, is_penalised, strict=True)
    ]
    return logits, found


def _logits(
    discriminator: Discriminator, groups: Sequence[_Rows], t: Tensor, y: Tensor, shown: Mapping[str, Any],
    **options: bool,
) -> tuple[Tensor, ...]:
    """One call of D; the logits of each group. What is shown of a sample is shown of its moved copy."""

    def of_all(values: Tensor) -> Tensor:
        return torch.cat([values[rows.where] for rows in groups])

    told = {name: of_all(value) if isinstance(value, Tensor) else value for name, value in shown.items()}
    logits = discriminator(torch.cat([rows.x for rows in groups]), of_all(t), of_all(y), **options, **told)
    return logits.split([len(rows.x) for rows in groups])
