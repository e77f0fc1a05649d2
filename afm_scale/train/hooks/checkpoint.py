"""Saving: every k steps and at the end, in the background."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ...checkpoint.manager import CheckpointConfig, CheckpointManager
from ...checkpoint.manifest import read_manifest
from ...core.errors import DivergenceError
from ...core.words import SAVING, STANDING
from ...parallel.plan import ParallelPlan
from ..failures import Failures
from ..state import TrainState
from .events import EventLog
from .hook import QuietHook, StepReport
from .surroundings import Surroundings


class CheckpointHook(QuietHook):
    """Saves the state with the manager. A save that failed stops all ranks, with its message and exit code 2.

    Each of `before_save` looks at the state first, on all ranks, and raises if it must not be saved.
    """

    def __init__(
        self, plan: ParallelPlan, config: CheckpointConfig, manager: CheckpointManager, *,
        before_save: Sequence[Callable[[TrainState], None]], failures: Failures, events: EventLog,
    ) -> None:
        self._plan = plan
        self._config = config
        self._manager = manager
        self._before_save = before_save
        self._failures = failures
        self._events = events
        self._saved_step: int | None = None

    def on_start(self, state: TrainState) -> None:
        newest = self._manager.latest()  # a finished run that is started again has nothing to save
        self._saved_step = None if newest is None else read_manifest(newest).step

    def after_step(self, state: TrainState, report: StepReport) -> None:
        with self._failures.kept():
            self._manager.poll()
        if state.step % self._config.every_steps == 0:
            self._save(state)

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if error is None and self._saved_step != state.step:
            self._save(state)
        # After a divergence, which all ranks raise together, a save that is under way is of a good step: finish it.
        if error is None or isinstance(error, DivergenceError):
            with self._failures.kept(), STANDING.during(SAVING):
                self._manager.wait()

    def _save(self, state: TrainState) -> None:
        for look in self._before_save:
            look(state)
        began = time.monotonic()
        with self._failures.kept(), STANDING.during(SAVING):
            self._manager.save(state.step, state.tensors(self._plan), state.scalars())
            self._saved_step = state.step
            self._events.write("save", step=state.step, seconds_waited=round(time.monotonic() - began, 3))


def build(config: None, around: Surroundings) -> CheckpointHook:
    return CheckpointHook(
        around.plan, around.checkpoint, around.manager, before_save=around.before_save, failures=around.failures,
        events=around.events,
    )
