"""How alpha, the share of an interval for which the path's velocity is trusted, falls in a run (arXiv 2510.20771)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from ..core.errors import ConfigError
from ..core.ranges import Range, Share


@dataclass(frozen=True, kw_only=True)
class ConstantAlpha:
    """The same from the first step to the last."""

    kind: Literal["constant"] = "constant"
    value: Share = 0.005  # 1: trajectory flow matching; 0: MeanFlow

    @property
    def reaches_zero(self) -> bool:
        return self.value == 0

    @property
    def least(self) -> float | None:
        """The smallest of an interval's shares that is stepped over; None: there is none."""
        return self.value if 0 < self.value < 1 else None

    def over(self, steps: int) -> ConstantAlpha:
        return self

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class SigmoidAlpha:
    """1 - sigmoid(sharpness q), q from -1/2 to 1/2 between two shares of the run (Algorithm 2), cut at both ends.

    Above 1 - cut it is 1, so that the first part of a run is trajectory flow matching: with the published numbers
    28.83% of the way from begin to end. Below cut, from 71.17% on, it is 0, which is MeanFlow with its derivative, or
    stays at cut, the floor.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    # share of the run's steps at which it begins, and at which it ends: at most 1, the whole run
    begin: Annotated[float, Range(0, 1e6)] = 0.0
    end: Annotated[float, Range(0, 1e6)] = 1.0  # see begin
    sharpness: Annotated[float, Range(above=0, high=1e4)] = 25.0  # gamma
    cut: Annotated[float, Range(above=0, below=0.5)] = 0.005  # eta
    ends_in: Literal["mean_flow", "floor"] = "mean_flow"  # below the cut: 0, or the cut itself

    def __post_init__(self) -> None:
        if not self.begin < self.end <= 1:
            raise ConfigError(
                f"a curriculum from {self.begin:g} to {self.end:g} of the run does not end in it; begin and end are "
                "shares of loop.steps, with begin < end <= 1"
            )

    @property
    def reaches_zero(self) -> bool:
        return self.ends_in == "mean_flow"

    @property
    def least(self) -> float | None:
        return self.cut

    def over(self, steps: int) -> AlphaInSteps:
        return AlphaInSteps(self, steps)


@dataclass(frozen=True)
class AlphaInSteps:
    """A curriculum over a run of so many steps."""

    curriculum: SigmoidAlpha
    steps: int

    def __call__(self, step: int) -> float:
        given = self.curriculum
        begin, end = given.begin * self.steps, given.end * self.steps
        place = (step - (begin + end) / 2) / max(end - begin, 1e-9)
        alpha = 1 / (1 + math.exp(min(given.sharpness * place, 700.0)))
        if alpha > 1 - given.cut:
            return 1.0
        if alpha < given.cut:
            return 0.0 if given.ends_in == "mean_flow" else given.cut
        return alpha


Alpha = ConstantAlpha | SigmoidAlpha
