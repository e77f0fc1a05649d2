"""Guidance of a generator's samples by a frozen network (AFM paper, section 3.8; Eq. 26 to 28 and 36 to 38).

A classifier says which class a sample looks like; a flow model says the same by the difference of its velocities:

    v(x', t') - v(x', t', y) = t' / (1 - t') grad log p(y | x', t')    for v = E[z - x | x'], without and with y

so per sample of n = C H W numbers the kind `velocity` pulls as `flow` with an exact classifier does, but
t' / ((1 - t')^2 n) times as strongly: its weight is of another size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.random import Draws
from ..core.ranges import Range, Share
from ..core.types import Classifier, Generator, without_class
from .path import interpolate


@dataclass(frozen=True, kw_only=True)
class _Guidance:
    weight: Annotated[float, Range(0, 1e6)]  # of the guidance in the generator's loss
    low: Share  # least of the times t' that count
    high: Share  # largest of them


@dataclass(frozen=True, kw_only=True)
class FlowGuidance(_Guidance):
    """Judges samples noised afresh to t' ~ U(low, high): classes that overlap under noise give a gradient (Eq. 26)."""

    guide: ClassVar[str] = "classifier"  # which frozen network it asks
    kind: Literal["flow"] = "flow"

    def judge(self, classifier: Classifier, x: Tensor, t: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """CrossEntropy(C(x', t'), y), [B]."""
        seen, time = noised(self, x, draws)
        return F.cross_entropy(classifier(seen, time), y, reduction="none")


@dataclass(frozen=True, kw_only=True)
class PlainGuidance(_Guidance):
    """Judges samples as they are, at their target time t, where low <= t <= high (Eq. 38; multi-step models)."""

    guide: ClassVar[str] = "classifier"  # which frozen network it asks
    kind: Literal["plain"] = "plain"

    def judge(self, classifier: Classifier, x: Tensor, t: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """CrossEntropy(C(x, t), y) where t is inside, 0 elsewhere, [B]."""
        inside = (t >= self.low) & (t <= self.high)
        return F.cross_entropy(classifier(x, t), y, reduction="none") * inside


@dataclass(frozen=True, kw_only=True)
class VelocityGuidance(_Guidance):
    """Asks a flow model, without and with the class, about samples noised afresh to t' ~ U(low, high) (Eq. 27, 28).

    The flow model must have been trained with `class_dropout`.
    """

    guide: ClassVar[str] = "flow"
    kind: Literal["velocity"] = "velocity"

    def judge(self, flow: Generator, x: Tensor, t: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """The mean over a sample's numbers of -x stopgrad(v(x', t') - v(x', t', y)), [B]: only its gradient means much.

        The velocity points from data to noise, against the score, so x is pulled along the rise of log p(y | x').
        """
        with torch.no_grad():
            seen, time = noised(self, x, draws)
            any_class, of_class = (flow(seen, time, time, label) for label in (without_class(y), y))
        return -(x * (any_class - of_class)).flatten(1).mean(1)


Guidance = FlowGuidance | PlainGuidance | VelocityGuidance


def noised(guidance: FlowGuidance | VelocityGuidance, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Samples with fresh noise, and how much: (x' = (1 - t') x + t' z' [B, C, H, W], t' [B])."""
    time = draws.uniform("guidance time", guidance.low, guidance.high)
    return interpolate(x, draws.normal("guidance noise", x.shape[1:]).to(x.dtype), time), time


def guidance_loss(
    guidance: Guidance, guide: Callable[..., Tensor], x: Tensor, t: Tensor, y: Tensor, draws: Draws
) -> Tensor:
    """weight * mean over the batch of what `guide`, a network of the kind asked for, says of generated samples, [].

    Args:
        x: [B, C, H, W] samples at target times t [B], meant to be of the classes y [B].
    """
    return guidance.weight * guidance.judge(guide, x, t, y, draws).mean()
