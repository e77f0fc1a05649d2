"""Flow matching (arXiv 2210.02747) on the straight path: regress the velocity.

    x_t = (1 - t) x + t z,   v = z - x,   L = |u(x_t, t, t, y) - v|^2 / n,   n = C H W

With class dropout some samples are shown without their class (arXiv 2207.12598), so that u learns both velocities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ..core.errors import ConfigError
from ..core.random import Draws
from ..core.ranges import Range
from ..core.types import Batch, Loss, Networks, Role, without_class
from ..flow.path import Prediction, interpolate
from ..flow.times import logit_normal
from .demands import no_class_taken
from .described import Described
from .objective import GameOfOne, GameOfOneConfig


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig(GameOfOneConfig):
    """Regression of the velocity, noise - data.

    `time_mean`, `time_std`: t = sigmoid(N(mean, std)) if given, U(0, 1) if not.
    """

    prediction: ClassVar[Prediction] = Prediction.V
    kind: Literal["flow_matching"] = "flow_matching"
    time_mean: Annotated[float, Range(-100, 100)] | None = None  # of the normal; null: t ~ U(0, 1)
    time_std: Annotated[float, Range(above=0, high=100)] = 1.0  # of the normal
    # probability that a sample's class is not told; 0.1 is usual
    class_dropout: Annotated[float, Range(0, below=1)] = 0.0

    @property
    def hides_classes(self) -> bool:
        return self.class_dropout > 0

    def check(self, described: Described) -> None:
        if described.model.generator.times == "none":
            raise ConfigError(
                f"objective.kind {self.kind!r} needs a generator that is told the time; "
                "set model.generator.times=source"
            )
        no_class_taken(described.model, self.class_dropout)


class FlowMatching(GameOfOne):
    """The generator's output is the velocity."""

    config: FlowMatchingConfig

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        t = self._times(draws)
        z = draws.normal("source noise", batch.x.shape[1:]).to(batch.x.dtype)
        velocity = nets.generator(interpolate(batch.x, z, t), t, t, self._labels(batch.y, draws))
        total = (velocity - (z - batch.x)).square().mean()
        return Loss(total, {"total": total.detach()})

    def _times(self, draws: Draws) -> Tensor:
        if self.config.time_mean is None:
            return draws.uniform("time")
        return logit_normal(draws, "time", (), self.config.time_mean, self.config.time_std)

    def _labels(self, y: Tensor, draws: Draws) -> Tensor:
        if self.config.class_dropout == 0:
            return y
        return without_class(y, draws.uniform("class dropout") < self.config.class_dropout)
