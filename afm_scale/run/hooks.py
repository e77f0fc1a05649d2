"""The hooks of a run and its pilot, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint.manager import CheckpointManager
from ..core.run_folder import RunFolder
from ..parallel.plan import ParallelPlan
from ..train.failures import Failures
from ..train.hooks.events import EventLog
from ..train.hooks.hook import Hook, HookList
from ..train.hooks.stop import StopHook
from ..train.hooks.surroundings import Surroundings
from ..train.hooks.table import HOOKS
from ..train.pilot.pilot import NoPilot, Pilot
from ..train.state import TrainState
from .config import RunConfig
from .evaluations import Evaluations
from .forecast.counting import step_flops_in_force
from .pilot import build_pilot


@dataclass(frozen=True)
class Observers:
    """The hooks of a run, and those of its parts that the command needs by name."""

    hooks: HookList
    stop: StopHook
    events: EventLog
    failures: Failures
    pilot: Pilot | NoPilot


def build_observers(
    config: RunConfig, plan: ParallelPlan, state: TrainState, manager: CheckpointManager, run_id: str
) -> Observers:
    """Every hook of the table that is wanted here, in its order, and the stop hook last; and the pilot, if any.

    Collective if the average is evaluated. Raises, on every rank, the UserError that one of them met.
    """
    folder, failures = RunFolder(config.run.folder), Failures()
    events = EventLog(folder.events, enabled=plan.rank == 0)
    stop = StopHook(plan, failures, events)
    evaluations = Evaluations(config, plan)
    around = Surroundings(
        plan=plan, folder=folder, events=events, failures=failures, total_steps=config.loop.steps,
        seed=config.loop.seed, sampling_steps=config.sampling.num_steps, checkpoint=config.checkpoint,
        manager=manager, run_id=run_id,
        wants_noise=(
            config.pilot is not None and config.pilot.rules.identity is not None
            and config.objective.prediction is not None
        ),
        evaluate=evaluations.of,
        operations=lambda objective, step: step_flops_in_force(config, objective, step),
    )
    pilot: Pilot | NoPilot = NoPilot()
    if config.pilot is not None:
        pilot = build_pilot(config, plan, state, events, evaluations, manager)
        around.listeners.append(pilot.observe)
        around.before_save.append(pilot.before_save)
    hooks: list[Hook | None] = []
    for name, kind in HOOKS.items():
        chosen = None if kind.config is None else getattr(config.hooks, name)
        if kind.config is None or chosen is not None:
            hooks.append(kind.build(chosen, around))
    return Observers(HookList([*filter(None, hooks), stop]), stop, events, failures, pilot)
