"""What the pilot knows: plain numbers, the same on every rank, kept in every checkpoint.

All it decides follows from this and the settings, so that the same history gives the same acts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ...core.ranges import FINITE, MANY, Range

Step = Annotated[int, Range(0, MANY)]
Value = Annotated[float, FINITE] | None  # None: it was not finite


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation, and what the steps since the one before were like."""

    step: Step
    images_seen: Annotated[int, Range(0, 2**62)]
    figures: dict[str, Value]  # of the evaluation
    signals: dict[str, Value]  # "generator/transport_cost": means over the steps and the ranks
    phase: Annotated[int, Range(0, 10_000)]  # in which it was made


@dataclass(frozen=True, kw_only=True)
class Window:
    """Sums over the steps since the last evaluation, or since the beginning."""

    steps: Step = 0
    sums: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reload:
    """An earlier discriminator came back, or a trial found that none should."""

    step: Step  # at which
    to: Step | None  # the step it is of; None: the present one stayed


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """The run went back to an earlier checkpoint."""

    step: Step  # at which something was no longer good
    to: Step  # of the checkpoint


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """What the guard has to know, by player."""

    norms: dict[str, tuple[Annotated[float, FINITE], ...]] = field(default_factory=dict)  # of the last updates made
    skips: dict[str, Step] = field(default_factory=dict)  # updates in a row that were not made, up to now
    weights: dict[str, Annotated[float, FINITE]] = field(default_factory=dict)  # norms at the last save, averages too


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Everything that a checkpoint keeps of the pilot."""

    phase: Annotated[int, Range(0, 10_000)] = 0  # the one that is going on
    began: Step = 0  # at which step it began
    began_images: Annotated[int, Range(0, 2**62)] = 0  # how many images the learner had seen then
    points: tuple[Point, ...] = ()  # in order
    is_pending: bool = False  # the newest point has not been acted on
    fired: tuple[str, ...] = ()  # the rules that hold at the newest point
    noise: dict[str, Value] = field(default_factory=dict)  # the figures that noise itself gets
    window: Window = Window()
    ring: tuple[Step, ...] = ()  # the steps whose discriminators are kept, in order
    reloads: tuple[Reload, ...] = ()  # in order
    roll_backs: tuple[RolledBack, ...] = ()  # in the order they were done; steps may come again
    guard: Guarded = Guarded()

    def of_phase(self) -> tuple[Point, ...]:
        """The evaluations of the phase that is going on."""
        return tuple(point for point in self.points if point.phase == self.phase and point.step > self.began)
