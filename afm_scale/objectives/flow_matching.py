"""Flow matching (arXiv 2210.02747) on the straight path: regress the velocity.

    x_t = (1 - t) x + t z,   v = z - x,   L = |u(x_t, t, t, y) - v|^2 / n,   n = C H W

With class dropout some samples are shown without their class (arXiv 2207.12598), so that u learns both velocities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.random import Draws
from ..core.types import NO_CLASS, Batch, Loss, Networks, Reduce, Role
from ..flow.path import Prediction, interpolate


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig:
    """`time_mean`, `time_std`: t = sigmoid(N(mean, std)) if given, U(0, 1) if not."""

    kind: Literal["flow_matching"] = "flow_matching"
    time_mean: float | None = None
    time_std: float = 1.0
    class_dropout: float = 0.0  # probability that a sample's class is not told; 0.1 is usual

    def __post_init__(self) -> None:
        if not 0 <= self.class_dropout < 1:
            raise ConfigError(f"class_dropout is a probability in [0, 1), found {self.class_dropout:g}")


class FlowMatching:
    """A game of one."""

    learner = Role.GENERATOR
    prediction = Prediction.V

    def __init__(self, config: FlowMatchingConfig, mean_over_ranks: Reduce, device: torch.device) -> None:
        self._config = config

    def turns(self, step: int) -> tuple[Role, ...]:
        return (Role.GENERATOR,)

    def state_dict(self) -> Mapping[str, Tensor]:
        return {}

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """Nothing here depends on the whole batch."""

    def generator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        t = self._times(draws)
        z = draws.normal("source noise", batch.x.shape[1:]).to(batch.x.dtype)
        velocity = nets.generator(interpolate(batch.x, z, t), t, t, self._labels(batch.y, draws))
        total = (velocity - (z - batch.x)).square().mean()
        return Loss(total, {"total": total.detach()})

    def _times(self, draws: Draws) -> Tensor:
        if self._config.time_mean is None:
            return draws.uniform("time")
        return torch.sigmoid(self._config.time_mean + self._config.time_std * draws.normal("time", ()))

    def _labels(self, y: Tensor, draws: Draws) -> Tensor:
        if self._config.class_dropout == 0:
            return y
        return y.masked_fill(draws.uniform("class dropout") < self._config.class_dropout, NO_CLASS)
