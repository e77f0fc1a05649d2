"""When an earlier discriminator comes back, which one, and what to do when none helps (AFM paper, App. C).

The authors "manually test a few checkpoints from different epochs and reload only when training stalls again". Here
that is a function of the pilot's memory and settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ...core.ranges import Count, Range
from .acts import Act, AdvancePhase, ReloadDiscriminator, Stop, TryDiscriminators
from .memory import Memory, Reload
from .rules import best


@dataclass(frozen=True, kw_only=True)
class ReloadConfig:
    """What the two ways of choosing have in common."""

    cool_down: Count = 1000  # updates after one reload, or trial, before the next
    limit: Annotated[int, Range(1, 1000)] = 3  # reloads and trials in a phase
    # when the limit is reached, or no candidate is left, and training still stalls; after the last phase the run ends
    when_spent: Literal["go_on", "next_phase", "stop"] = "go_on"


@dataclass(frozen=True, kw_only=True)
class ByRule(ReloadConfig):
    """The newest that is old enough."""

    kind: Literal["rule"] = "rule"
    age: Count = 1000  # updates, at least


@dataclass(frozen=True, kw_only=True)
class ByTrial(ReloadConfig):
    """The one from which a short branch improves the quality fastest; the present one takes part, and may stay."""

    kind: Literal["trial"] = "trial"
    candidates: Annotated[int, Range(1, 100)] = 3  # beside the present one
    updates: Count = 200  # of a branch
    evaluations: Annotated[int, Range(1, 1000)] = 2  # of a branch, evenly spaced, the last one at its end


def on_stall(
    config: ByRule | ByTrial, memory: Memory, *, step: int, quality: str, least_improvement: float, is_last: bool
) -> Act | None:
    """What to do at a step where training stalls in a phase, the last one or not; None: to go on."""
    if memory.reloads and step - memory.reloads[-1].step < config.cool_down:
        return None
    in_phase = [reload for reload in memory.reloads if reload.step >= memory.began]
    if len(in_phase) >= config.limit:
        spent = f"training stalls after {len(in_phase)} reloads"
    else:
        bound = step - (config.age if isinstance(config, ByRule) else 1)
        last = in_phase[-1] if in_phase else None
        if last is not None and last.to is not None and not has_helped(last, memory, quality, least_improvement):
            bound = min(bound, last.to - 1)  # an older one next
        found = [kept for kept in usable(memory) if kept <= bound]
        if found and isinstance(config, ByRule):
            return ReloadDiscriminator(to=found[-1], why="training stalls")
        if found:
            return TryDiscriminators(candidates=spread(found, config.candidates), why="training stalls")
        spent = "training stalls, and no discriminator is left that is old enough"
    if config.when_spent == "go_on":
        return None
    return Stop(why=spent) if config.when_spent == "stop" or is_last else AdvancePhase(why=spent)


def usable(memory: Memory) -> list[int]:
    """The steps of the ring, in order, without those that a reload has turned away from: they led to a stall."""
    turned = [(reload.to, reload.step) for reload in memory.reloads if reload.to is not None]
    return [kept for kept in memory.ring if not any(to < kept <= at for to, at in turned)]


def spread(steps: Sequence[int], count: int) -> tuple[int, ...]:
    """So many of them, evenly by their order, the newest among them; all if there are no more."""
    if len(steps) <= count:
        return tuple(steps)
    last = len(steps) - 1
    return tuple(steps[last - round(place * last / max(count - 1, 1))] for place in reversed(range(count)))


def has_helped(reload: Reload, memory: Memory, quality: str, least_improvement: float) -> bool:
    """Whether the quality has become better, by that share, than it ever was in the phase before."""
    points = [(point.step, point.figures.get(quality)) for point in memory.of_phase()]
    before = best([value for step, value in points if step <= reload.step])
    return best([value for step, value in points if step > reload.step]) < before * (1 - least_improvement)
