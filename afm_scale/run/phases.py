"""The phases of a recipe: what each lays over it, checked, and made ready for the pilot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import ConfigError
from ..core.schedules import counted_from
from ..core.typed import Mistake, build, to_mapping
from ..core.types import Role
from ..objectives.objective import ObjectiveConfig
from ..train.pilot.config import PhaseConfig, PilotConfig
from ..train.pilot.phases import InForce, Phase
from .config import RunConfig

_FIXED = ("kind", "prediction", "gradient_scale", "update")  # of an objective: networks, state and turns are of these
_WHOLE_RUN = PhaseConfig(name="run")


def phases_of(config: RunConfig) -> tuple[PhaseConfig, ...]:
    """At least one: without a pilot, or phases of its own, the whole run."""
    return (config.pilot.phases if config.pilot is not None else ()) or (_WHOLE_RUN,)


def build_phases(config: RunConfig) -> tuple[Phase, ...]:
    """What the pilot puts in force. The recipe has been checked."""
    return tuple(_phase(config, number, phase) for number, phase in enumerate(phases_of(config)))


def configs_of_phases(config: RunConfig) -> tuple[RunConfig, ...]:
    """The recipe as it is in each of its phases, schedules counted from the run's first step.

    Raises ConfigError, naming the setting, for an objective that cannot be built.
    """
    return tuple(_during(config, number, phase) for number, phase in enumerate(phases_of(config)))


def guides_of(config: RunConfig) -> tuple[str, ...]:
    """The guides that any phase asks."""
    return tuple(dict.fromkeys(guide for phase in configs_of_phases(config) for guide in phase.objective.guides))


def _phase(config: RunConfig, number: int, phase: PhaseConfig) -> Phase:
    objective = _objective(config, number, phase)

    def from_step(first: int) -> InForce:
        named = {name: counted_from(getattr(objective, name), first) for name in phase.objective}
        return InForce(
            learning_rates={role: _rate(config, phase, role, first) for role in config.objective.roles},
            objective=replace(objective, **named).resolved(config.parallel.precision).over(config.loop.steps),
        )

    return Phase(config=phase, from_step=from_step)


def _during(config: RunConfig, number: int, phase: PhaseConfig) -> RunConfig:
    """Without the guides that are there for other phases, where there are any."""
    objective = _objective(config, number, phase)
    others = {name for name in ("classifier", "flow") if config.pilot is not None and config.pilot.phases}
    idle = others.difference(objective.guides, (role.value for role in objective.roles))
    return replace(config, objective=objective, model=replace(config.model, **dict.fromkeys(idle)))


def _rate(config: RunConfig, phase: PhaseConfig, role: Role, first: int) -> Any:
    own = getattr(phase.learning_rate, role.value)
    return getattr(config.optimizer, role.value).learning_rate if own is None else counted_from(own, first)


def _objective(config: RunConfig, number: int, phase: PhaseConfig) -> ObjectiveConfig:
    """The recipe's objective with the phase's settings laid over it."""
    given = config.objective
    for name in _FIXED:
        if name in phase.objective and phase.objective[name] != to_mapping(given).get(name):
            raise ConfigError(
                f"pilot.phases[{number}].objective.{name} cannot change while a run goes on; set objective.{name}"
            )
    keys = ("pilot", "phases", f"[{number}]", "objective")
    try:
        return build(type(given), _laid(to_mapping(given), phase.objective), keys)
    except Mistake as error:
        raise ConfigError(f"{error}; phase {phase.name!r} lays these over the recipe's objective") from error


def _laid(below: Any, above: Any) -> Any:
    """A mapping of another kind, or none, takes the place of the whole; of the same kind it is laid over it."""
    merges = isinstance(below, Mapping) and isinstance(above, Mapping) and above.get("kind", below.get("kind")) == (
        below.get("kind")
    )
    if not merges:
        return above
    return {**below, **{key: _laid(below.get(key), value) for key, value in above.items()}}


def check_phases(pilot: PilotConfig, config: RunConfig) -> None:
    """Raises ConfigError for phases that could not be entered, or would never end, and for guides of none."""
    for guide in ("classifier", "flow") if pilot.phases else ():
        is_player = guide in (role.value for role in config.objective.roles)
        if getattr(config.model, guide) is not None and not is_player and guide not in guides_of(config):
            raise ConfigError(f"model.{guide} is described, but no phase asks it; set model.{guide}=null")
    names = [phase.name for phase in pilot.phases]
    for number, (name, phase) in enumerate(zip(names, pilot.phases, strict=True)):
        setting = f"pilot.phases[{number}]"
        if name in names[:number]:
            raise ConfigError(f"{setting}.name {name!r} is that of an earlier phase; names tell them apart in the logs")
        for role in Role:
            if getattr(phase.learning_rate, role.value) is not None and role not in config.objective.roles:
                raise ConfigError(
                    f"{setting}.learning_rate.{role.value}: no {role.value} learns here; leave it out"
                )
        if phase.until.epochs is not None and pilot.images_per_epoch is None:
            raise ConfigError(
                f"{setting}.until.epochs needs pilot.images_per_epoch, the number of training images; set it, or count "
                "in until.updates"
            )
        if phase.until == type(phase.until)() and number + 1 < len(names):
            raise ConfigError(
                f"{setting}.until says nothing, so phase {name!r} never ends and {names[number + 1]!r} never begins; "
                "set until.updates, until.epochs or until.plateau"
            )
        needs = [
            reason for reason, holds in (
                ("until.plateau", phase.until.plateau is not None),
                ("average_into_generator", phase.average_into_generator != "never"),
                ("discriminator_reload", phase.discriminator_reload != "never"),
            ) if holds
        ]
        if needs and config.hooks.evaluation is None:
            raise ConfigError(
                f"{setting}.{needs[0]} acts on evaluations, and there are none; set hooks.evaluation, whose figure "
                f"{pilot.quality!r} (pilot.quality) is to fall"
            )
