"""The time-conditioned classifier that guides (AFM paper, sections 3.8 and 4.1): cross-entropy on noised samples.

    t ~ U(0, 1),   x_t = (1 - t) x + t z,   L = CrossEntropy(C(x_t, t), y)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.random import Draws
from ..core.types import Batch, Loss, Networks, Reduce, Role
from ..flow.path import interpolate


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    kind: Literal["classification"] = "classification"


class Classification:
    """A game of one, whose player is the classifier."""

    learner = Role.CLASSIFIER

    def __init__(self, config: ClassificationConfig, mean_over_ranks: Reduce, device: torch.device) -> None:
        pass

    def turns(self, step: int) -> tuple[Role, ...]:
        return (Role.CLASSIFIER,)

    def state_dict(self) -> Mapping[str, Tensor]:
        return {}

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """Nothing here depends on the whole batch."""

    def classifier_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        t = draws.uniform("time")
        z = draws.normal("source noise", batch.x.shape[1:]).to(batch.x.dtype)
        logits = nets.classifier(interpolate(batch.x, z, t), t)
        total = F.cross_entropy(logits, batch.y)
        right = (logits.detach().argmax(dim=1) == batch.y).to(total.dtype)
        return Loss(total, {"total": total.detach(), "accuracy": right.mean()})
