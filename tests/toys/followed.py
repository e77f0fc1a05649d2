"""A toy objective with a second, faster average and a frozen network of its own, which another run has trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from afm_scale.core.random import Draws
from afm_scale.core.schedules import AverageConfig
from afm_scale.core.types import Batch, Loss, Networks, Role
from afm_scale.flow.path import Prediction, interpolate
from afm_scale.objectives.objective import FrozenNetwork, GameOfOne, GameOfOneConfig


@dataclass(frozen=True, kw_only=True)
class FollowedConfig(GameOfOneConfig):
    """`teacher`: the folder or a checkpoint of a run of objective 'flow_matching'."""

    prediction: ClassVar[Prediction] = Prediction.V
    kind: Literal["followed"] = "followed"
    teacher: Path
    target_decay: float = 0.5

    @property
    def averages(self) -> Mapping[str, AverageConfig]:
        return {"target": AverageConfig(decay=self.target_decay)}

    @property
    def frozen(self) -> Mapping[str, FrozenNetwork]:
        return {"teacher": FrozenNetwork(weights=self.teacher, objective="flow_matching")}


class Followed(GameOfOne):
    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        s = draws.uniform("time")
        z = draws.normal("source noise", batch.x.shape[1:]).to(batch.x.dtype)
        inputs = interpolate(batch.x, z, s), s, s, batch.y
        with torch.no_grad():
            taught, before = nets.frozen["teacher"](*inputs), nets.averages["target"](*inputs)
        velocity = nets.generator(*inputs)
        terms = {
            "teacher": (velocity - taught).square().mean(),
            "target": (velocity - before).square().mean(),
        }
        total = terms["teacher"] + terms["target"]
        return Loss(total, {"total": total.detach(), **{name: term.detach() for name, term in terms.items()}})
