"""The pilot of a run, from its configuration; and what earlier discriminators ask of the rest of a recipe."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint.manager import CheckpointManager
from ..core.errors import ConfigError
from ..core.run_folder import RunFolder
from ..core.typed import to_mapping
from ..core.types import Role
from ..parallel.plan import ParallelPlan
from ..train.hooks.events import EventLog
from ..train.hooks.hook import HookList
from ..train.loop import train
from ..train.pilot.config import PilotConfig
from ..train.pilot.pilot import Pilot
from ..train.pilot.reload import ByTrial
from ..train.pilot.reloading import Reloading
from ..train.pilot.ring import Ring
from ..train.pilot.rolling_back import RollingBack
from ..train.pilot.trial import Trial
from ..train.state import TrainState
from .config import RunConfig
from .evaluations import Evaluations
from .phases import build_phases


def build_pilot(
    config: RunConfig, plan: ParallelPlan, state: TrainState, events: EventLog, evaluations: Evaluations,
    manager: CheckpointManager,
) -> Pilot:
    """Of a recipe that has one. Collective if it keeps discriminators."""
    assert config.pilot is not None
    back = config.pilot.roll_back
    return Pilot(
        config.pilot, build_phases(config), state, plan, events, _reloading(config, plan, events, evaluations),
        None if back is None else RollingBack(back, manager, plan, events),
    )


def _reloading(
    config: RunConfig, plan: ParallelPlan, events: EventLog, evaluations: Evaluations
) -> Reloading | None:
    pilot = config.pilot
    if pilot is None or pilot.ring is None:
        return None
    ring = Ring(
        pilot.ring, RunFolder(config.run.folder), plan, events, keep_last=config.checkpoint.keep_last,
        description={"config": to_mapping(config)},
    )

    def train_until(state: TrainState, step: int) -> None:
        train(state, plan, replace(config.loop, steps=step), HookList([]))

    trial = None
    if isinstance(pilot.reload, ByTrial):
        trial = Trial(
            ring, plan, updates=pilot.reload.updates, evaluations=pilot.reload.evaluations, quality=pilot.quality,
            measure=evaluations.measure, train_until=train_until,
        )
    return Reloading(ring, trial, events)


def check_reloads(pilot: PilotConfig, config: RunConfig) -> None:
    """Raises ConfigError where no discriminator could be kept, or none could come back."""
    if pilot.ring is not None and Role.DISCRIMINATOR not in config.objective.roles:
        raise ConfigError(
            f"pilot.ring keeps discriminators, and objective.kind {config.objective.kind!r} has none; "
            "set pilot.ring=null"
        )
    if isinstance(pilot.reload, ByTrial):
        if pilot.ring is not None and pilot.reload.candidates > pilot.ring.keep:
            raise ConfigError(
                f"pilot.reload.candidates={pilot.reload.candidates} are more than pilot.ring.keep={pilot.ring.keep} "
                "can hold; set one of the two"
            )
        if pilot.reload.evaluations > pilot.reload.updates:
            raise ConfigError(
                f"pilot.reload.evaluations={pilot.reload.evaluations} are more than pilot.reload.updates="
                f"{pilot.reload.updates}; set one of the two"
            )
    for number, phase in enumerate(pilot.phases):
        if phase.discriminator_reload == "never":
            continue
        setting = f"pilot.phases[{number}].discriminator_reload={phase.discriminator_reload}"
        if Role.DISCRIMINATOR not in config.objective.roles:
            raise ConfigError(f"{setting}: objective.kind {config.objective.kind!r} has no discriminator; leave it out")
        if pilot.ring is None:
            raise ConfigError(f"{setting} has no earlier one to take; set pilot.ring={{every_steps: 1000}}, or more")
        if pilot.rules.stall is None:
            raise ConfigError(f"{setting} acts when training stalls, which nobody watches; set pilot.rules.stall={{}}")
