"""TwinFlow (arXiv 2512.05150) on RCGM: few steps by intervals, and one step by a twin of the network at negative times.

Quarters of the global batch, in this order, by fixed numbers:

    one step     t = 1, r = 0            base, and rectification
    near         r in [0.95 t, t]        base; their velocities are guided
    far          r in [0, t]             likewise
    adversarial  F(x_f, -t', -t') regresses z' - x_f   on x_f = z - F(z, 1, 0), the network's own samples, mixed with z'

    base       |F - sg(F - clamp(e))|^2,  e = [(t - r) F - int_r^s F^-] / D - v,  s = t - D      (flow/mean_velocity.py)
    guidance   v + w (F^-(x_t, t, t, y) - F^-(x_t, t, t, no class)):  of scale 1 / (1 - w), as F^- follows F
    rectified  |F(z, 1, 0) - sg(F(z, 1, 0) + clamp(F(x', t', t') - F(x', -t', -t')))|^2,  x' = (1 - t') x_f + t' z'

F^- is the average "target", fast and beside the published one, or the network itself; it moves once an update. Not in
the paper, but in the program: the weight of time, the clamps, the loss that is about the root of the error. In neither:
classes are hidden from some near ones, and the first updates may be flow matching, to start from scratch. `image_free`:
data of all quarters are x_f; published for prompts alone, with a target that does not move (decay 1) and w = 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.random import Draws
from ..core.ranges import MANY, Range
from ..core.schedules import AverageConfig, InUpdates
from ..core.types import Batch, Generator, Loss, Networks, Role, without_class
from ..flow.mean_velocity import Interval, residual, velocities
from ..flow.path import Prediction, expand_times, interpolate
from . import demands
from .described import Described
from .objective import GameOfOne, GameOfOneConfig
from .quarters import QUARTERS, quarters_of, samples, weight_of_time
from .weighting import RobustWeight

TARGET = "target"


@dataclass(frozen=True, kw_only=True)
class TwinFlowConfig(GameOfOneConfig):
    """Any step by RCGM, one step by self-adversarial and rectified samples at negative times (arXiv 2512.05150)."""

    prediction: ClassVar[Prediction] = Prediction.V
    kind: Literal["twin_flow"] = "twin_flow"
    order: Annotated[int, Range(1, 16)] = 2  # N, jumps of the target average over the rest of an interval
    interval: Annotated[float, Range(above=0, below=1)] = 0.01  # D, of which the velocity is the path's
    near: Annotated[float, Range(above=0, high=1)] = 0.05  # largest interval of the near ones, as a share of t
    guidance_weight: Annotated[float, Range(0, 100)] = 0.8  # w; 0: no guidance
    class_dropout: Annotated[float, Range(0, 0.25)] = 0.1  # share of the samples whose class is hidden, near ones
    clamp: Annotated[float, Range(above=0, high=1e6)] = 1.0  # of every number of e, and of the rectification
    robust: RobustWeight | None = RobustWeight()  # null: plain squares
    rectification_weight: Annotated[float, Range(0, 1e6)] = 0.5  # of the mean over the one-step samples
    target: AverageConfig | None = AverageConfig(decay=0.99, warm_up=True)  # the average F^-; null: the network itself
    warm_up_steps: Annotated[int, Range(0, MANY), InUpdates()] = 0  # updates of plain flow matching before all this
    image_free: bool = False  # whether the network's own one-step samples stand in the place of all images

    @property
    def hides_classes(self) -> bool:
        return self.class_dropout > 0

    @property
    def averages(self) -> Mapping[str, AverageConfig]:
        return {} if self.target is None else {TARGET: self.target}

    def check(self, described: Described) -> None:
        kind = f"objective.kind {self.kind!r}"
        demands.intervals_told(described.model, by=kind, negative=True)
        demands.no_class_taken(described.model, self.class_dropout)
        asks_own = self.guidance_weight > 0 and (self.target is None or self.target.decay < 1)  # not what it began with
        demands.no_class_learnt(self.class_dropout, "objective.guidance_weight" if asks_own else None)
        demands.wide_enough(described.precision, self.interval, "objective.interval", "objective.interval=0.02")
        demands.images_to_begin_with(self.image_free, self.warm_up_steps, described.steps)
        if described.microbatch < QUARTERS:
            raise ConfigError(
                f"{kind} cuts the batch into quarters, of which every microbatch needs a sample each, found "
                f"{described.microbatch}: use {QUARTERS} at least by a larger data.global_batch, less "
                "loop.accumulation or fewer ranks"
            )


class Compared(NamedTuple):
    """What is regressed, sample by sample; the first `ones` are the one-step samples."""

    found: Interval  # all samples, at positive times
    t: Tensor  # [B] as told to the network, negative for adversarial samples
    r: Tensor  # [B]
    prediction: Tensor  # [B, C, H, W], with a graph
    target: Tensor  # [B, C, H, W]
    loss: Tensor  # [B], with a graph, before the weight of time
    time_weight: Tensor  # [B]
    rectified: Tensor  # [ones, C, H, W]
    rectification: Tensor  # [ones], with a graph
    part: float  # what one of them counts in the mean over all one-step samples


class TwinFlow(GameOfOne):
    config: TwinFlowConfig

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        if step < self.config.warm_up_steps:
            return self._flow_matching(nets.generator, batch, draws)
        found = self.compared(nets, batch, draws)
        rectification = self.config.rectification_weight * found.part * found.rectification.sum()
        regression = (found.time_weight * found.loss).mean()
        total = regression + rectification
        squared = (found.prediction - found.target).square().mean()
        terms = {"total": total, "regression": regression, "rectification": rectification, "squared_error": squared}
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def compared(self, nets: Networks, batch: Batch, draws: Draws) -> Compared:
        config, network, quarters = self.config, nets.generator, quarters_of(draws.positions)
        ones, near, far, part = quarters
        target_network = network if config.target is None else nets.averages[TARGET]
        found = samples(network, batch, draws, quarters, near=config.near, image_free=config.image_free)
        y, hidden = self._labels(batch.y, draws, ones, near)
        found = found._replace(velocity=self._guided(target_network, found, batch.y, hidden, ones, far))
        sign = torch.ones_like(found.t)
        sign[far:] = -1
        t, r = sign * found.t, sign * found.r
        prediction = network(found.x, t, r, y)
        with torch.no_grad():
            off = residual(
                lambda x, t, r: target_network(x, t, r, y[:far]), found.rows(0, far), prediction[:far],
                config.interval, config.order,
            ).clamp(-config.clamp, config.clamp)
            target = torch.cat((prediction[:far] - off, found.velocity[far:]))
            rectified = self._rectified(network, found.rows(0, ones), prediction[:ones], batch.y[:ones], draws)
        return Compared(
            found, t, r, prediction, target, self._error(prediction - target), weight_of_time(found, far), rectified,
            self._error(prediction[:ones] - rectified), part,
        )

    def _labels(self, y: Tensor, draws: Draws, ones: int, near: int) -> tuple[Tensor, Tensor]:
        """Labels as shown, and [B] which are hidden: of near samples alone, so many that all come to the share."""
        hidden = torch.zeros_like(y, dtype=torch.bool)
        if self.config.class_dropout > 0:
            hidden[ones:near] = draws.uniform("class dropout")[ones:near] < QUARTERS * self.config.class_dropout
        return without_class(y, hidden), hidden

    def _guided(self, network: Generator, found: Interval, y: Tensor, hidden: Tensor, ones: int, far: int) -> Tensor:
        """The velocity, moved along the difference of F^- with and without the class where neither is at an end."""
        velocity = found.velocity
        if self.config.guidance_weight == 0:
            return velocity
        part, y = found.rows(ones, far), y[ones:far]
        of_class, of_none = velocities(network, part.x, part.t, y, without_class(y))
        is_guided = expand_times((part.t < 1) & ~hidden[ones:far], part.x)
        moved = part.velocity + is_guided * self.config.guidance_weight * (of_class - of_none)
        return torch.cat((velocity[:ones], moved, velocity[far:]))

    def _rectified(self, network: Generator, found: Interval, prediction: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """F(z, 1, 0) moved by the difference of the two twins on what it makes, mixed with fresh noise."""
        count, shape, dtype = len(y), found.x.shape[1:], found.x.dtype
        z = draws.normal("noise of rectification", shape)[:count].to(dtype)
        t = draws.uniform("time of rectification")[:count].to(dtype)
        x = interpolate(found.x - prediction, z, t)
        times = torch.cat((t, -t))
        real, fake = network(x.repeat(2, 1, 1, 1), times, times, y.repeat(2)).chunk(2)
        return prediction + (real - fake).clamp(-self.config.clamp, self.config.clamp)

    def _error(self, difference: Tensor) -> Tensor:
        error = difference.square().flatten(1).mean(1)
        return error if self.config.robust is None else self.config.robust(error)

    def _flow_matching(self, network: Generator, batch: Batch, draws: Draws) -> Loss:
        """As objective 'flow_matching' at uniform times."""
        t = draws.uniform("time")
        z = draws.normal("source noise", batch.x.shape[1:]).to(batch.x.dtype)
        hidden = draws.uniform("class dropout") < self.config.class_dropout
        velocity = network(interpolate(batch.x, z, t), t, t, without_class(batch.y, hidden))
        total = (velocity - (z - batch.x)).square().mean()
        found = dict.fromkeys(("total", "regression", "squared_error"), total.detach())
        return Loss(total, {**found, "rectification": torch.zeros_like(total)})
