"""The phases of a run, made ready for training, and when one is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...core.schedules import Schedule
from ...core.types import Role
from ...objectives.objective import ObjectiveConfig
from .config import PhaseConfig, UntilConfig
from .memory import Memory
from .rules import is_flat


@dataclass(frozen=True, kw_only=True)
class InForce:
    """What holds in a phase that began at a certain step; schedules are of the run's steps."""

    learning_rates: Mapping[Role, Schedule]
    objective: ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of the recipe, and what makes its settings those in force, given the step that it begins at."""

    config: PhaseConfig
    from_step: Callable[[int], InForce]


def why_over(
    until: UntilConfig, memory: Memory, *, step: int, images_seen: int, images_per_epoch: int | None, quality: str
) -> str | None:
    """Why the phase that is going on ends at this step boundary; None if it goes on."""
    updates, images = step - memory.began, images_seen - memory.began_images
    if until.updates is not None and updates >= until.updates:
        return f"{updates} updates"
    if until.epochs is not None and images_per_epoch is not None and images >= until.epochs * images_per_epoch:
        return f"{images / images_per_epoch:g} epochs"
    if until.plateau is not None and memory.is_pending:
        qualities = [point.figures.get(quality) for point in memory.of_phase()]
        if is_flat(qualities, until.plateau.patience, until.plateau.least_improvement):
            return f"{quality} has not improved in {until.plateau.patience} evaluations"
    return None
