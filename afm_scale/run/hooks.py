"""The hooks of a run, from its configuration and their table."""

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
from .config import RunConfig
from .evaluations import build_evaluation


@dataclass(frozen=True)
class Observers:
    """The hooks of a run, and those of its parts that the command needs by name."""

    hooks: HookList
    stop: StopHook
    events: EventLog
    failures: Failures


def build_observers(config: RunConfig, plan: ParallelPlan, manager: CheckpointManager, run_id: str) -> Observers:
    """Every hook of the table that is wanted here, in its order, and the stop hook last.

    Collective if the average is evaluated. Raises, on every rank, the UserError that one of them met.
    """
    folder, failures = RunFolder(config.run.folder), Failures()
    events = EventLog(folder.events, enabled=plan.rank == 0)
    stop = StopHook(plan, failures, events)
    around = Surroundings(
        plan=plan, folder=folder, events=events, failures=failures, total_steps=config.loop.steps,
        seed=config.loop.seed, sampling_steps=config.sampling.num_steps, checkpoint=config.checkpoint,
        manager=manager, run_id=run_id, evaluate=lambda chosen: build_evaluation(config, chosen, plan),
    )
    hooks: list[Hook | None] = []
    for name, kind in HOOKS.items():
        chosen = None if kind.config is None else getattr(config.hooks, name)
        if kind.config is None or chosen is not None:
            hooks.append(kind.build(chosen, around))
    return Observers(HookList([*filter(None, hooks), stop]), stop, events, failures)
