"""In-training evaluation: every k steps the average is measured, by all ranks, and whoever listens is told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from tqdm import tqdm

from ...core.screen import errors
from ...core.words import EVALUATING, STANDING
from ..evaluation import Evaluate, Evaluation, Listener
from ..failures import Failures
from ..state import TrainState
from .events import EventLog
from .hook import QuietHook, StepReport
from .surroundings import Surroundings


class EvaluationConfig(Protocol):
    """Figures of the average while a run trains, every so many steps.

    This is what the hook itself wants; the rest is for whoever makes a measurement of it.
    """

    every_steps: int


class EvaluationHook(QuietHook):
    """Measures the average every k steps and tells the listeners.

    It stands before the metrics hook, so that a row of the same step has the figures. A listener that fails
    with a UserError stops all ranks at the same step.
    """

    def __init__(
        self, evaluate: Evaluate, *, every_steps: int, listeners: Sequence[Listener], failures: Failures,
        measures_noise: bool = False,
    ) -> None:
        self._evaluate = evaluate
        self._every_steps = every_steps
        self._listeners = tuple(listeners)
        self._failures = failures
        self._measures_noise = measures_noise  # once in this process

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if state.step % self._every_steps != 0:
            return
        began = time.monotonic()
        with STANDING.during(EVALUATING):
            figures = dict(self._evaluate(state))
            noise = dict(self._evaluate.of_noise(state)) if self._measures_noise else None
        self._measures_noise = False
        evaluation = Evaluation(
            step=state.step, images_seen=state.images_seen, figures=figures, seconds=time.monotonic() - began,
            noise=noise,
        )
        for listener in self._listeners:
            with self._failures.kept():
                listener(evaluation)


def log_to(events: EventLog) -> Listener:
    """A listener that writes a line of kind 'evaluation' into the event log."""

    def listener(found: Evaluation) -> None:
        events.write(
            "evaluation", step=found.step, images_seen=found.images_seen, figures=dict(found.figures),
            seconds=round(found.seconds, 3),
        )

    return listener


def note_in(notes: dict[str, float]) -> Listener:
    """A listener that adds 'evaluation/<figure>', '.../seconds' and '.../step' to the notes for the next row."""

    def listener(found: Evaluation) -> None:
        values = {**found.figures, "seconds": found.seconds, "step": found.step}
        notes.update({f"evaluation/{name}": value for name, value in values.items()})

    return listener


def tell(found: Evaluation) -> None:
    """Prints one line on the terminal, above the bar if there is one. For rank 0 alone."""
    figures = "  ".join(f"{name} {value:.4g}" for name, value in found.figures.items())
    tqdm.write(f"evaluation at step {found.step}: {figures}  ({found.seconds:.1f} s)", file=errors())


def build(config: EvaluationConfig, around: Surroundings) -> EvaluationHook:
    """Collective: opens what the measurement needs. Raises, on every rank, the UserError that one of them met."""
    told = [tell] if around.plan.rank == 0 else []
    listeners = [log_to(around.events), note_in(around.notes), *told, *around.listeners]
    return EvaluationHook(
        around.evaluate(config), every_steps=config.every_steps, listeners=listeners, failures=around.failures,
        measures_noise=around.wants_noise,
    )
