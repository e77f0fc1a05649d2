"""A toy objective that is a plain regression: the generator's output is the clean sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from afm_scale.core.random import Draws
from afm_scale.core.types import Batch, Loss, Networks, Role
from afm_scale.flow.path import Prediction, interpolate
from afm_scale.objectives.objective import GameOfOne, GameOfOneConfig


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(GameOfOneConfig):
    prediction: ClassVar[Prediction] = Prediction.X
    kind: Literal["denoising"] = "denoising"


class Denoising(GameOfOne):
    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        s = draws.uniform("time")
        z = draws.normal("source noise", batch.x.shape[1:]).to(batch.x.dtype)
        x = nets.generator(interpolate(batch.x, z, s), s, s * 0, batch.y)
        total = (x - batch.x).square().mean()
        return Loss(total, {"total": total.detach()})
