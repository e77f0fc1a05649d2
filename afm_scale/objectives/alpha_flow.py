"""alpha-Flow (arXiv 2510.20771): from flow matching over whole intervals to MeanFlow, by steps of a falling share.

    s = t - alpha (t - r),   x_s = x_t - (t - s) v,   target = alpha v + (1 - alpha) u(x_s, s, r)        (Eq. 8)
    L = E alpha^-1 D (alpha^2 / (D + eps))^p,   D = |u(x_t, t, r) - sg(target)|^2;   p = 0: Eq. 8;  p = 1 as published

The sign of x_s is that of Algorithm 1. At alpha = 1 the target is v, at alpha = 0 that of MeanFlow, by its derivative;
between them a second pass without a graph does, so that a run that ends at the floor never takes a derivative. Targets
of alpha > 0 are clamped number by number, as the published program does and its paper does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..core.ranges import Range, Share
from ..core.types import Generator
from ..flow.mean_velocity import Interval, discrete_target, limit_target
from . import demands
from .curriculum import Alpha, SigmoidAlpha
from .described import Described
from .intervals import IntervalConfig, IntervalRegression
from .weighting import AdaptiveWeight


@dataclass(frozen=True, kw_only=True)
class AlphaFlowConfig(IntervalConfig):
    """The mean velocity by steps over a share of the interval, which falls in the run (arXiv 2510.20771)."""

    without_forward_derivative: ClassVar[str] = "set objective.alpha.ends_in=floor"
    kind: Literal["alpha_flow"] = "alpha_flow"
    flow_matching_share: Share = 0.5  # of the global batch, whose intervals have no length
    alpha: Alpha = SigmoidAlpha()  # share of an interval for which the velocity of the path is trusted
    # every number of a target of alpha > 0 is held between minus this and this; null: none is
    clamp: Annotated[float, Range(above=0, high=1e6)] | None = 4.0
    weight: AdaptiveWeight = AdaptiveWeight(power=1.0, eps=1e-3, reduction="mean")

    @property
    def uses_derivative(self) -> bool:
        return self.alpha.reaches_zero

    def check(self, described: Described) -> None:
        super().check(described)
        if self.alpha.least is not None:
            demands.wide_enough(described.precision, self.alpha.least, "objective.alpha", "objective.alpha.cut=0.02")

    def over(self, steps: int) -> AlphaFlowConfig:
        return replace(self, alpha=self.alpha.over(steps))


class AlphaFlow(IntervalRegression):
    config: AlphaFlowConfig

    def interval_target(
        self, network: Generator, found: Interval, y: Tensor, of_class: Tensor | None, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        alpha, clamp = self.config.alpha(step), self.config.clamp
        watched = {"alpha": torch.full_like(found.t, alpha), "clamped": torch.zeros_like(found.t)}  # in every phase
        if alpha == 0:
            return limit_target(found, self.along(network, found, y, found.velocity)), watched
        target = found.velocity
        if alpha < 1:
            target = discrete_target(lambda x, t, r: network(x, t, r, y), found, alpha)
        if clamp is None:
            return target, watched
        return target.clamp(-clamp, clamp), {**watched, "clamped": (target.abs() > clamp).to(target).flatten(1).mean(1)}

    def interval_weight(self, step: int) -> float:
        alpha = self.config.alpha(step)
        return alpha ** (2 * self.config.weight.power - 1) if alpha > 0 else 1.0
