"""The time-conditioned classifier that guides (AFM paper, sections 3.8 and 4.1): cross-entropy on noised samples.

    t ~ U(0, 1),   x_t = (1 - t) x + t z,   L = CrossEntropy(C(x_t, t), y)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F

from ..core.errors import ConfigError
from ..core.random import Draws
from ..core.types import Batch, Loss, Networks, Role
from ..flow.path import interpolate
from .described import Described
from .objective import GameOfOne, GameOfOneConfig


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(GameOfOneConfig):
    """What is trained is under `model.classifier`."""

    roles: ClassVar[tuple[Role, ...]] = (Role.CLASSIFIER,)
    prediction: ClassVar[None] = None
    kind: Literal["classification"] = "classification"

    def check(self, described: Described) -> None:
        if described.model.classifier.weights is not None:
            raise ConfigError(
                f"model.classifier.weights is for guidance; objective.kind {self.kind!r} trains the classifier: set it "
                "to null (run.initialise_from starts from another run's weights)"
            )


class Classification(GameOfOne):
    """The one player is the classifier."""

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        t = draws.uniform("time")
        z = draws.normal("source noise", batch.x.shape[1:]).to(batch.x.dtype)
        logits = nets.classifier(interpolate(batch.x, z, t), t)
        total = F.cross_entropy(logits, batch.y)
        right = (logits.detach().argmax(dim=1) == batch.y).to(total.dtype)
        return Loss(total, {"total": total.detach(), "accuracy": right.mean()})
