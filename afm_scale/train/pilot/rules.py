"""How failures are recognised: each rule is one short function of the evaluations so far, newest last.

A rule answers with its evidence, numbers by name, or None: then it does not hold. One whose signals are not there
(an objective without a discriminator has no logits) never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from ...core.ranges import Range

Evidence = Mapping[str, float]

GRADIENT = "generator/adversarial_gradient_square"  # of D's gradient at the samples, before normalisation
COST = "generator/transport_cost"  # mean square of a sample minus its noise
REAL, FAKE = "discriminator/logit_real", "discriminator/logit_fake"


@dataclass(frozen=True, kw_only=True)
class StallConfig:
    """Quality is flat while D's gradient at the samples decays and the gap between the logits grows: D wins."""

    patience: Annotated[int, Range(1, 10_000)] = 4  # evaluations in a row without improvement
    least_improvement: Annotated[float, Range(0, below=1)] = 0.02  # that counts as one, as a share of the best before
    gradient_falls_to: Annotated[float, Range(above=0, high=1)] = 0.5  # of its median in the phase
    gap_grows_to: Annotated[float, Range(1, 1e6)] = 1.5  # times its median in the phase


@dataclass(frozen=True, kw_only=True)
class RulesConfig:
    """When something has gone wrong; null: not watched."""

    stall: StallConfig | None = StallConfig()


def best(values: Sequence[float | None]) -> float:
    """The least of those that are finite; infinity if none is."""
    return min((value for value in values if value is not None), default=float("inf"))


def is_flat(qualities: Sequence[float | None], patience: int, least_improvement: float) -> bool:
    """Whether the best of the last `patience` is no better, by that share, than the best of those before.

    Qualities that fall as they get better, newest last.
    """
    if len(qualities) <= patience:
        return False
    return not best(qualities[-patience:]) < best(qualities[:-patience]) * (1 - least_improvement)
