"""MeanFlow (arXiv 2505.13447) and the target of improved MeanFlow (arXiv 2512.02012).

    u = v - (t - r) du/dt,   du/dt = (du/dx) w + du/dt|_t,   target = v - (t - r) sg(du/dt)

The tangent w is the velocity v that is learnt, or, improved, the network's own u(x_t, t, t, y): a function of x_t, of
less variance. (iMF learns that one by a head of its own, which is not needed for it.) The network is asked for du/dt
without a graph, about the samples with a length alone, so that the pass with a graph keeps its fast attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..core.types import Generator
from ..flow.mean_velocity import Interval, limit_target, velocities
from .intervals import IntervalConfig, IntervalRegression


@dataclass(frozen=True, kw_only=True)
class MeanFlowConfig(IntervalConfig):
    """The mean velocity by its derivative along the path (arXiv 2505.13447)."""

    without_forward_derivative: ClassVar[str] = "set objective.derivative=central"
    kind: Literal["mean_flow"] = "mean_flow"
    tangent: Literal["velocity", "predicted"] = "velocity"  # of x; predicted: the network's own, as improved MeanFlow


class MeanFlow(IntervalRegression):
    config: MeanFlowConfig

    def interval_target(
        self, network: Generator, found: Interval, y: Tensor, of_class: Tensor | None, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        tangent = found.velocity
        if self.config.tangent == "predicted":
            tangent = velocities(network, found.x, found.t, y)[0] if of_class is None else of_class
        along = self.along(network, found, y, tangent)
        return limit_target(found, along), {"derivative_square": along.square().flatten(1).mean(1)}
