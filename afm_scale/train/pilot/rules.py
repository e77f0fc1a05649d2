"""How failures are recognised: each rule is one short function of the evaluations so far, newest last.

A rule answers with its evidence, numbers by name, or None: then it does not hold. One whose signals are not there
(an objective without a discriminator has no logits) never does. docs/pilot.md has the runs behind the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated

from ...core.ranges import Range
from .memory import Memory, Point, Value

Evidence = Mapping[str, float]

GRADIENT = "generator/adversarial_gradient_square"  # of D's gradient at the samples, before normalisation
COST = "generator/transport_cost"  # mean square of a sample minus its noise
REAL, FAKE = "discriminator/logit_real", "discriminator/logit_fake"

_NEAR = 0.25  # of the way from the best quality to one that is too bad: evaluations of one run differ by less

Evaluations = Annotated[int, Range(1, 10_000)]


@dataclass(frozen=True, kw_only=True)
class StallConfig:
    """Quality is flat, and D no longer teaches: it has won (its gradient decays while the gap grows), or is lost (the
    gap is gone)."""

    patience: Evaluations = 4  # evaluations in a row without improvement
    least_improvement: Annotated[float, Range(0, below=1)] = 0.02  # that counts as one, as a share of the best before
    gradient_falls_to: Annotated[float, Range(above=0, high=1)] = 0.5  # D has won: of its largest in the phase
    gap_grows_to: Annotated[float, Range(1, 1e6)] = 1.2  # and the gap between the logits, times its median
    gap_falls_to: Annotated[float, Range(above=0, high=1)] = 0.1  # D is lost: the gap, of its largest in the phase
    gradient_stays_at: Annotated[float, Range(above=0, high=1)] = 0.7  # and its gradient, of its median


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """The generator returns its noise: the transport weight is too large."""

    cost_below: Annotated[float, Range(above=0, high=1e6)] = 0.05  # transport cost, where noise has variance 1
    quality_above: Annotated[float, Range(above=0, high=1)] = 0.5  # as a share of what the noise itself gets


@dataclass(frozen=True, kw_only=True)
class RiseConfig:
    """Quality rises sharply, back towards that of noise, or is no number."""

    times: Annotated[float, Range(above=1, high=1e6)] = 3.0  # the best so far
    loses: Annotated[float, Range(above=0, high=1)] = 0.5  # or so much of what the best so far had gained on noise
    patience: Evaluations = 2  # evaluations in a row


@dataclass(frozen=True, kw_only=True)
class CollapseConfig:
    """Diversity, as a share of that of the data, falls, or never comes: samples are alike."""

    falls_to: Annotated[float, Range(above=0, below=1)] = 0.5  # of the most so far
    floor: Annotated[float, Range(0, below=1)] = 0.1  # or below this share of the data's
    after: Annotated[int, Range(0, 10_000)] = 4  # evaluations, in which a generator may still be at its beginning
    patience: Evaluations = 2  # evaluations in a row


@dataclass(frozen=True, kw_only=True)
class RulesConfig:
    """When something has gone wrong; null: not watched."""

    stall: StallConfig | None = StallConfig()
    identity: IdentityConfig | None = IdentityConfig()
    divergence: RiseConfig | None = RiseConfig()
    collapse: CollapseConfig | None = CollapseConfig()  # of the figure that pilot.diversity names


def fired(rules: RulesConfig, memory: Memory, *, quality: str, diversity: str | None) -> dict[str, Evidence]:
    """The rules that hold at the newest evaluation, and why, by their names."""
    points = memory.points
    found = {
        "stall": rules.stall and stall(rules.stall, memory.of_phase(), quality),
        "identity": rules.identity and identity(rules.identity, points[-1], quality, memory.noise.get(quality)),
        "divergence": rules.divergence and divergence(rules.divergence, points, quality, memory.noise.get(quality)),
        "collapse": rules.collapse and diversity and collapse(rules.collapse, points, diversity),
    }
    return {name: evidence for name, evidence in found.items() if evidence}


def stall(config: StallConfig, points: Sequence[Point], quality: str) -> Evidence | None:
    """Of the evaluations of a phase: quality is flat, and D has won or is lost.

    The paper tells of a gradient that vanishes because D wins (App. C), users of its code of logits that converge.
    """
    qualities = [point.figures.get(quality) for point in points]
    if not is_flat(qualities, config.patience, config.least_improvement):
        return None
    gradients = [point.signals.get(GRADIENT) for point in points]
    gaps = [_difference(point.signals.get(REAL), point.signals.get(FAKE)) for point in points]
    if None in gradients or None in gaps:
        return None
    gradient, gap = math.sqrt(gradients[-1]), gaps[-1]
    usual = {"largest_gradient": math.sqrt(max(gradients)), "usual_gap": median(gaps), "largest_gap": max(gaps)}
    has_won = (
        gradient <= config.gradient_falls_to * usual["largest_gradient"]
        and gap >= config.gap_grows_to * usual["usual_gap"]
    )
    # In a run that has converged the gradient goes with the gap.
    is_lost = median(gaps[-config.patience :]) <= config.gap_falls_to * usual["largest_gap"] and (
        median(gradients[-config.patience :]) >= config.gradient_stays_at**2 * median(gradients)
    )
    return {"gradient": gradient, "gap": gap, **usual} if has_won or is_lost else None


def identity(config: IdentityConfig, point: Point, quality: str, of_noise: Value) -> Evidence | None:
    """Samples are near their noise, and as bad as noise (AFM paper, Fig. 2: too large a transport weight)."""
    cost, value = point.signals.get(COST), point.figures.get(quality)
    if cost is None or value is None or of_noise is None:
        return None
    if cost >= config.cost_below or value < config.quality_above * of_noise:
        return None
    return {"transport_cost": cost, "quality": value, "quality_of_noise": of_noise}


def divergence(config: RiseConfig, points: Sequence[Point], quality: str, of_noise: Value) -> Evidence | None:
    """Every one of the last qualities is so much worse than the best before them, or no number.

    A generator that has not come far cannot be three times as bad, noise being the worst; what it had gained can be
    lost all the same (digits, D at thirty times the rate: 15.7 at best, then 34, and noise 45).
    """
    qualities = [point.figures.get(quality) for point in points]
    before, last = qualities[: -config.patience], qualities[-config.patience :]
    reference = best(before)
    limit = _too_bad(config, reference, of_noise)
    if math.isinf(reference) or any(value is not None and value <= limit for value in last):
        return None
    return {"quality": math.inf if last[-1] is None else last[-1], "best": reference, "limit": limit}


def last_good(config: RiseConfig, points: Sequence[Point], quality: str, of_noise: Value) -> int:
    """Where a divergence holds: the step of the newest evaluation before it that was near the best, not on the way."""
    before = [(point.step, point.figures.get(quality)) for point in points[: -config.patience]]
    reference = best([value for _, value in before])
    near = reference + _NEAR * (_too_bad(config, reference, of_noise) - reference)
    return max(step for step, value in before if value is not None and value <= near)


def _too_bad(config: RiseConfig, reference: float, of_noise: Value) -> float:
    limit = config.times * reference
    if of_noise is None or reference >= of_noise:
        return limit
    return min(limit, reference + config.loses * (of_noise - reference))


def collapse(config: CollapseConfig, points: Sequence[Point], diversity: str) -> Evidence | None:
    """Every one of the last diversities is so much less than the most before them, or next to nothing."""
    values = [point.figures.get(diversity) or 0.0 for point in points]
    before, last = values[: -config.patience], values[-config.patience :]
    if not before:
        return None
    has_fallen = max(last) < config.falls_to * max(before)
    is_nothing = max(last) < config.floor and len(before) >= config.after
    return {"diversity": last[-1], "most": max(before)} if has_fallen or is_nothing else None


def best(values: Sequence[Value]) -> float:
    """The least of those that are finite; infinity if none is."""
    return min((value for value in values if value is not None), default=math.inf)


def is_flat(qualities: Sequence[Value], patience: int, least_improvement: float) -> bool:
    """Whether the best of the last `patience` is no better, by that share, than the best of those before.

    Qualities that fall as they get better, newest last.
    """
    if len(qualities) <= patience:
        return False
    return not best(qualities[-patience:]) < best(qualities[:-patience]) * (1 - least_improvement)


def _difference(first: Value, second: Value) -> Value:
    return None if first is None or second is None else first - second
