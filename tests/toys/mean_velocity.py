"""A toy objective with a derivative in forward mode: u regresses v - (s - t) du/ds along the path, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from afm_scale.core.random import Draws
from afm_scale.core.types import Batch, Loss, Networks, Role
from afm_scale.flow.derivative import derivative
from afm_scale.flow.path import Prediction, expand_times, interpolate
from afm_scale.objectives.demands import times_told
from afm_scale.objectives.described import Described
from afm_scale.objectives.objective import GameOfOne, GameOfOneConfig


@dataclass(frozen=True, kw_only=True)
class MeanVelocityConfig(GameOfOneConfig):
    prediction: ClassVar[Prediction] = Prediction.V
    differentiates_forward: ClassVar[bool] = True
    kind: Literal["mean_velocity"] = "mean_velocity"

    def check(self, described: Described) -> None:
        times_told(described.model, "both", by=f"objective.kind {self.kind!r}")


class MeanVelocity(GameOfOne):
    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        z = draws.normal("source noise", batch.x.shape[1:]).to(batch.x.dtype)
        s = draws.uniform("source time")
        t = s * draws.uniform("target time")
        x_s, v = interpolate(batch.x, z, s), z - batch.x
        _, along = derivative(
            lambda x, s, t: nets.generator(x, s, t, batch.y), (x_s, s, t), (v, torch.ones_like(s), torch.zeros_like(t))
        )
        target = v - (expand_times(s, x_s) - expand_times(t, x_s)) * along
        total = (nets.generator(x_s, s, t, batch.y) - target).square().mean()
        return Loss(total, {"total": total.detach(), "derivative": along.square().mean()})
