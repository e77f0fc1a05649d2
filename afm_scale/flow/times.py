"""Which pairs of times (s, t) a few-step generator is trained on. A sampler is its own configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..core.random import Draws
from ..core.ranges import Range


@dataclass(frozen=True, kw_only=True)
class GridTimes:
    """K equal steps: s uniform on {1, 1 - 1/K, ..., 1/K}, t = s - 1/K. K = 1 is one-step generation."""

    kind: Literal["grid"] = "grid"
    steps: Annotated[int, Range(1, 1_000_000)]  # K, network evaluations of one sample

    @property
    def told(self) -> Literal["none", "source"]:
        """Which of (s, t) a generator has to be told: the source says the target, and one step says both."""
        return "none" if self.steps == 1 else "source"

    def __call__(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """(s, t), each [B] float32. Both come from whole numbers, so that the last t is exactly 0 for every K."""
        index = torch.floor(draws.uniform("source time") * self.steps)
        return (self.steps - index) / self.steps, (self.steps - index - 1) / self.steps


@dataclass(frozen=True, kw_only=True)
class AnyTimes:
    """Any pair: s ~ U(0, 1), t ~ U(0, s)."""

    kind: Literal["any"] = "any"
    told: ClassVar[Literal["both"]] = "both"

    def __call__(self, draws: Draws) -> tuple[Tensor, Tensor]:
        s = draws.uniform("source time")
        return s, s * draws.uniform("target time")


TimeSampler = GridTimes | AnyTimes


def logit_normal(draws: Draws, name: str, shape: Sequence[int], mean: float, std: float) -> Tensor:
    """sigmoid(N(mean, std)), [B, *shape] float32.

    By float64: torch's sigmoid in float32 rounds a number otherwise with fifteen others (AVX2) than by itself, and a
    sample's time must not depend on how many are on its rank.
    """
    return torch.sigmoid((mean + std * draws.normal(name, shape)).double()).float()


@dataclass(frozen=True, kw_only=True)
class LogitNormalIntervals:
    """The later and the earlier of two times sigmoid(N(mean, std)), as MeanFlow and alpha-Flow were published."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: Annotated[float, Range(-100, 100)] = -0.4  # of the normal
    std: Annotated[float, Range(above=0, high=100)] = 1.0  # of the normal

    def __call__(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """(s, t), each [B] float32 with 0 < t <= s < 1."""
        pair = logit_normal(draws, "times", (2,), self.mean, self.std)
        return pair.amax(1), pair.amin(1)


@dataclass(frozen=True, kw_only=True)
class UniformIntervals:
    """The later and the earlier of two uniform times."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, draws: Draws) -> tuple[Tensor, Tensor]:
        pair = draws.uniform("times", shape=(2,))
        return pair.amax(1), pair.amin(1)


IntervalSampler = LogitNormalIntervals | UniformIntervals
