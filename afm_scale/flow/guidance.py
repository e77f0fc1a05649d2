"""Classifier guidance of a generator's samples (AFM paper, section 3.8; Eq. 26 and 38)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..core.random import Draws
from ..core.types import Classifier
from .path import interpolate


@dataclass(frozen=True, kw_only=True)
class FlowGuidance:
    """Judges samples noised afresh to t' ~ U(low, high): classes that overlap under noise give a gradient (Eq. 26)."""

    kind: Literal["flow"] = "flow"
    weight: float
    low: float
    high: float

    def classifier_input(self, x: Tensor, t: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """What the classifier sees: (x' [B, C, H, W], t' [B]) for generated samples x at target times t."""
        time = draws.uniform("guidance time", self.low, self.high)
        return interpolate(x, draws.normal("guidance noise", x.shape[1:]).to(x.dtype), time), time


@dataclass(frozen=True, kw_only=True)
class PlainGuidance:
    """Judges samples as they are, at their target time t, where low <= t <= high (Eq. 38; multi-step models)."""

    kind: Literal["plain"] = "plain"
    weight: float
    low: float
    high: float

    def classifier_input(self, x: Tensor, t: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        return x, t


Guidance = FlowGuidance | PlainGuidance


def guidance_loss(
    guidance: Guidance, classifier: Classifier, x: Tensor, t: Tensor, y: Tensor, draws: Draws
) -> Tensor:
    """weight * mean over the batch of CrossEntropy(C(x', t'), y), [], where times outside [low, high] count as 0."""
    seen, time = guidance.classifier_input(x, t, draws)
    cross_entropy = F.cross_entropy(classifier(seen, time), y, reduction="none")  # [B]
    inside = (time >= guidance.low) & (time <= guidance.high)
    return guidance.weight * (cross_entropy * inside).mean()
