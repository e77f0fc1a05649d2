"""The settings of the pilot: phases, and when one is over; what it watches and what it may do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ...core.ranges import MANY, Count, Range
from ...core.schedules import Schedule
from .guard import GuardConfig
from .reload import ByRule, ByTrial
from .ring import RingConfig
from .rolling_back import RollBackConfig
from .rules import RulesConfig


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """The quality has stopped improving: its best of the last `patience` evaluations is no better than that before."""

    patience: Annotated[int, Range(1, 10_000)] = 3  # evaluations in a row without improvement
    least_improvement: Annotated[float, Range(0, below=1)] = 0.02  # that counts as one, as a share of the best before


@dataclass(frozen=True, kw_only=True)
class UntilConfig:
    """When a phase is over: at the first of these that holds. None of them: it lasts to the end of the run."""

    updates: Count | None = None  # of the learner, in this phase
    epochs: Annotated[float, Range(above=0, high=1_000_000)] | None = None  # in this phase; see images_per_epoch
    plateau: PlateauConfig | None = None  # of the quality, in this phase


@dataclass(frozen=True, kw_only=True)
class PhaseRates:
    """Learning rates of a phase, by player; null: as the recipe's `optimizer` says."""

    generator: Annotated[Schedule, Range(0)] | None = None  # counted from the phase's first update
    discriminator: Annotated[Schedule, Range(0)] | None = None  # likewise
    classifier: Annotated[Schedule, Range(0)] | None = None  # likewise


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A part of the run, laid over the recipe; what it does not say is as the recipe says.

    Schedules that it names count from its first update; those of the recipe count from the run's.
    """

    name: str  # for the logs
    learning_rate: PhaseRates = PhaseRates()
    objective: dict[str, Any] = field(default_factory=dict)  # settings laid over the recipe's `objective`
    # whether the average becomes the generator's weights (the paper's EMA reload)
    average_into_generator: Literal["never", "every_evaluation"] = "never"
    # whether an earlier discriminator comes back when training stalls
    discriminator_reload: Literal["never", "on_stagnation"] = "never"
    optimizer: Literal["keep", "reset"] = "keep"  # the optimizers' moments, as the phase begins
    until: UntilConfig = UntilConfig()


@dataclass(frozen=True, kw_only=True)
class PilotConfig:
    """Everything that intervenes in a run by itself."""

    quality: str = "frechet_distance"  # the figure of hooks.evaluation that is to fall
    diversity: str | None = None  # a figure of hooks.evaluation whose fall is a collapse; null: none is watched
    images_per_epoch: Annotated[int, Range(1, MANY)] | None = None  # for phases counted in epochs: 1281167 of ImageNet
    phases: tuple[PhaseConfig, ...] = ()  # one after another; none: the whole run is one, as the recipe says
    rules: RulesConfig = RulesConfig()
    ring: RingConfig | None = None  # earlier discriminators, kept so that one can come back; null: none is
    reload: ByRule | ByTrial = ByRule()  # which one comes back, in phases that say discriminator_reload
    guard: GuardConfig | None = None  # against updates that would spoil the weights; null: none
    # a run that has diverged goes back to its newest good checkpoint, and on with other data; null: it ends
    roll_back: RollBackConfig | None = None
