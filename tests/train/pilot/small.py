"""A pilot over the small run of the hooks' tests, told evaluations whose figures a test has chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from afm_scale.core.schedules import Constant, Schedule
from afm_scale.core.types import Role
from afm_scale.objectives.flow_matching import FlowMatchingConfig
from afm_scale.parallel.plan import ParallelPlan
from afm_scale.train.evaluation import Evaluation
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import HookList, QuietHook, StepReport
from afm_scale.train.loop import LoopConfig, train
from afm_scale.train.pilot.config import PhaseConfig, PilotConfig
from afm_scale.train.pilot.memory import Memory, Point
from afm_scale.train.pilot.phases import InForce, Phase
from afm_scale.train.pilot.pilot import Pilot
from afm_scale.train.state import TrainState

QUALITY = "frechet_distance"


def point(step: int, quality: float | None, phase: int = 0, **signals: float) -> Point:
    return Point(step=step, images_seen=step * 12, figures={QUALITY: quality}, signals=signals, phase=phase)


def history(qualities: Sequence[float | None], **changes: object) -> Memory:
    """Evaluations at steps 10, 20, ... of the first phase, the newest of which is to be acted on."""
    points = tuple(point(10 * number, quality) for number, quality in enumerate(qualities, start=1))
    return Memory(**{"points": points, "is_pending": True, **changes})


def ready(config: PhaseConfig, **rates: Schedule) -> Phase:
    chosen = {Role.GENERATOR: Constant(value=1e-3)} | {Role(name): rate for name, rate in rates.items()}
    return Phase(
        config=config,
        from_step=lambda first: InForce(
            learning_rates={role: rate.from_step(first) for role, rate in chosen.items()},
            objective=FlowMatchingConfig(),
        ),
    )


class Told(QuietHook):
    """Tells the pilot what a test has chosen to be found at some steps."""

    def __init__(self, pilot: Pilot, qualities: Mapping[int, float]) -> None:
        self.pilot = pilot
        self._qualities = qualities
        self.rates: list[float] = []

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self.rates.append(report.learning_rates["generator"])
        if state.step in self._qualities:
            figures = {QUALITY: self._qualities[state.step]}
            self.pilot.observe(Evaluation(
                step=state.step, images_seen=state.images_seen, figures=figures, seconds=0.0
            ))


def steered(
    state: TrainState, plan: ParallelPlan, config: PilotConfig, phases: Sequence[Phase], folder: Path, *, steps: int,
    qualities: Mapping[int, float] | None = None,
) -> Told:
    """Trains to `steps` with a pilot; its events lie in `folder`."""
    pilot = Pilot(config, phases, state, plan, EventLog(folder / "events.jsonl", enabled=plan.rank == 0))
    told = Told(pilot, qualities or {})
    train(state, plan, LoopConfig(steps=steps), HookList([told]), pilot)
    pilot.before_save(state)
    return told
