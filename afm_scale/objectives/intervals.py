"""What MeanFlow and alpha-Flow share: the regression of the mean velocity u over intervals [r, t] (arXiv 2505.13447).

    x_t = (1 - t) x + t z,   v = z - x  or mixed with the network's own (flow/mean_velocity.py),
    L = mean_i w_i |u(x_t, t, r, y) - sg(target)|^2,   target = v where r = t, that of the objective elsewhere

The first samples of the global batch have r = t, by a fixed number: on every rank as many, to one. Classes are hidden
from these alone, as published, where a number of the first ones is drawn; here each is drawn for itself, so that its
share of the whole batch is `class_dropout`. Their velocity is not mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.random import Draws
from ..core.ranges import Range, Share
from ..core.types import Batch, Generator, Loss, Networks, Role, without_class
from ..flow.derivative import central_difference, derivative
from ..flow.mean_velocity import Interval, MixedVelocity
from ..flow.path import Prediction, expand_times, interpolate
from ..flow.times import IntervalSampler, LogitNormalIntervals
from . import demands
from .described import Described
from .objective import GameOfOne, GameOfOneConfig
from .weighting import AdaptiveWeight


@dataclass(frozen=True, kw_only=True)
class IntervalConfig(GameOfOneConfig):
    prediction: ClassVar[Prediction] = Prediction.V
    uses_derivative: ClassVar[bool] = True  # du/dt, at some time of the run
    times: IntervalSampler = LogitNormalIntervals()  # which pairs (t, r) are trained
    flow_matching_share: Share = 0.75  # of the global batch, whose intervals have no length
    # share of the samples whose class is hidden, all of them of those without length; 0.1 as published
    class_dropout: Annotated[float, Range(0, below=1)] = 0.1
    guidance: MixedVelocity | None = None  # null: the velocity of the path alone
    derivative: Literal["forward", "central"] = "forward"  # du/dt: in forward mode, or by central differences in fp32
    difference: Annotated[float, Range(above=0, high=0.1)] = 0.005  # the time between the points of a central one
    weight: AdaptiveWeight = AdaptiveWeight()

    @property
    def differentiates_forward(self) -> bool:
        return self.uses_derivative and self.derivative == "forward"

    @property
    def hides_classes(self) -> bool:
        return self.class_dropout > 0

    def check(self, described: Described) -> None:
        demands.intervals_told(described.model, by=f"objective.kind {self.kind!r}")
        demands.no_class_taken(described.model, self.class_dropout)
        demands.no_class_learnt(self.class_dropout, "objective.guidance" if self.guidance else None)
        if self.class_dropout > self.flow_matching_share:
            raise ConfigError(
                f"objective.class_dropout {self.class_dropout:g} is more than objective.flow_matching_share "
                f"{self.flow_matching_share:g}, of whose samples alone classes are hidden; lower the one or raise the "
                "other"
            )
        if self.uses_derivative and self.derivative == "central":
            demands.precise_differences(
                described.precision, ("fp32", "fp64"), f"objective.derivative 'central' over {self.difference:g}",
                "objective.derivative=forward",
            )


class Rows(NamedTuple):
    """What a microbatch is asked about."""

    found: Interval
    shown: Tensor  # [B] labels, some hidden
    hidden: Tensor  # [B] which
    instants: int  # how many have r = t, the first ones
    part: float | None  # what one with a length counts in a mean over those of the global batch; None: none has any


class Compared(NamedTuple):
    """A regression, sample by sample."""

    velocity: Tensor  # [B, C, H, W] v, or mixed
    target: Tensor  # [B, C, H, W]
    prediction: Tensor  # [B, C, H, W], with a graph
    weight: Tensor  # [B]
    loss: Tensor  # [B] weighted, with a graph
    flow_matching: Tensor  # [B] mean |u - v|^2: trajectory flow matching, one part of what is learnt ...
    consistency: Tensor  # [B] mean 2 (v - target) u: ... and the other (arXiv 2510.20771, Eq. 6)
    watched: Mapping[str, Tensor]  # name -> []


class IntervalRegression(GameOfOne):
    """A subclass says what the target is where r < t, and how much such a sample counts."""

    config: IntervalConfig

    def interval_target(
        self, network: Generator, found: Interval, y: Tensor, of_class: Tensor | None, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Of samples with a length (and perhaps one without), and what is worth watching of each; without a graph.

        `of_class`: u(x_t, t, t, y) where guidance has asked for it.
        """
        raise NotImplementedError

    def interval_weight(self, step: int) -> float:
        """What multiplies the weight of a sample with a length."""
        return 1.0

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        found = self.compared(nets, batch, draws, step)
        total = found.loss.mean()
        watched = {
            "total": total, "squared_error": (found.prediction - found.target).square().mean(),
            "trajectory_flow_matching": found.flow_matching.mean(),
            "trajectory_consistency": found.consistency.mean(), **found.watched,
        }
        return Loss(total, {name: value.detach() for name, value in watched.items()})

    def compared(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Compared:
        config, network, rows = self.config, nets.generator, self._rows(batch, draws)
        found, of_class = rows.found, None
        if config.guidance is not None:
            mixed, of_class = config.guidance(network, found, batch.y)
            hidden = expand_times(rows.hidden, mixed).bool()
            found = found._replace(velocity=torch.where(hidden, found.velocity, mixed))
        target, watched = found.velocity, {}
        if rows.part is not None:
            # A rank may have none, but takes part in every gathering of weights: then it asks about one for nothing.
            start = min(rows.instants, len(target) - 1)
            told = None if of_class is None else of_class[start:]
            of_intervals, seen = self.interval_target(network, found.rows(start), batch.y[start:], told, step)
            first = rows.instants - start
            target = torch.cat((target[:rows.instants], of_intervals[first:]))
            watched = {name: rows.part * values[first:].sum() for name, values in seen.items()}
        prediction = network(found.x, found.t, found.r, rows.shown)
        error = config.weight.error(prediction - target)
        weight = config.weight(error)
        weight = torch.cat((weight[:rows.instants], self.interval_weight(step) * weight[rows.instants:]))
        return Compared(
            found.velocity, target, prediction, weight, weight * error,
            (prediction - found.velocity).square().flatten(1).mean(1),
            (2 * (found.velocity - target) * prediction).flatten(1).mean(1), watched,
        )

    def along(self, network: Generator, found: Interval, y: Tensor, tangent: Tensor) -> Tensor:
        """d/dt u(x_t, t, r, y) where x_t moves by `tangent`, [B, C, H, W]."""
        (x, t, r, _), config = found, self.config
        if config.derivative == "central":
            return central_difference(
                lambda x, t: network(x, t, r.repeat(2), y.repeat(2)), (x, t), tangent, r, config.difference
            )
        tangents = tangent, torch.ones_like(t), torch.zeros_like(r)
        return derivative(lambda x, t, r: network(x, t, r, y), (x, t, r), tangents)[1]

    def _rows(self, batch: Batch, draws: Draws) -> Rows:
        config, positions, dtype = self.config, draws.positions, batch.x.dtype
        in_all = round(config.flow_matching_share * positions.total)
        instants = positions.below(in_all)
        t, r = (time.to(dtype) for time in config.times(draws))
        r = torch.cat((t[:instants], r[instants:]))
        z = draws.normal("source noise", batch.x.shape[1:]).to(dtype)
        hidden = torch.zeros_like(batch.y, dtype=torch.bool)
        if config.class_dropout > 0 and in_all:
            share = config.class_dropout * positions.total / in_all  # of those without a length
            hidden[:instants] = draws.uniform("class dropout")[:instants] < share
        found = Interval(interpolate(batch.x, z, t), t, r, z - batch.x)
        # A microbatch's loss is averaged over all `stride` of them; dividing by the global count makes that the mean.
        part = None if in_all == positions.total else positions.stride / (positions.total - in_all)
        return Rows(found, without_class(batch.y, hidden), hidden, instants, part)
