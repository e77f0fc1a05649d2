from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from afm_scale.core.errors import DivergenceError, UserError
from afm_scale.train.evaluation import Evaluation
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.evaluation import EvaluationHook, log_to, note_in, tell
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.metrics import JsonLines, MetricsConfig, MetricsHook
from afm_scale.train.hooks.stop import StopHook
from afm_scale.train.state import TrainState
from tests.train.hooks.small import run, small_plan, small_state, stop_for


class Measured:
    """Counts its calls, and says so."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, state: TrainState) -> Mapping[str, float]:
        self.steps.append(state.step)
        return {"distance": 10.0 - state.step}


def observed(folder: Path, *, steps: int, every_steps: int, rows_every_steps: int) -> list[Evaluation]:
    """A run with every listener there is; the findings that a further one was told."""
    plan = small_plan()
    state = small_state(plan)
    events = EventLog(folder / "events.jsonl", enabled=True)
    failures = Failures()
    stop = StopHook(plan, failures, events)
    notes: dict[str, float] = {}
    writer = JsonLines(folder / "metrics.jsonl")
    metrics = MetricsHook(plan, MetricsConfig(every_steps=rows_every_steps), [writer], failures, notes)
    found: list[Evaluation] = []
    listeners = [log_to(events), note_in(notes), tell, found.append]
    hook = EvaluationHook(Measured(), every_steps=every_steps, listeners=listeners, failures=failures)
    run(state, plan, [hook, metrics, stop], steps=steps)
    return found


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_k_steps_all_who_listen_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = observed(tmp_path, steps=5, every_steps=2, rows_every_steps=2)
    assert [(one.step, one.images_seen, dict(one.figures)) for one in found] == [
        (2, 24, {"distance": 8.0}), (4, 48, {"distance": 6.0}),
    ]
    assert all(one.seconds >= 0 for one in found)
    events = [event for event in lines_of(tmp_path / "events.jsonl") if event["kind"] == "evaluation"]
    assert [(event["step"], event["images_seen"], event["figures"]) for event in events] == [
        (2, 24, {"distance": 8.0}), (4, 48, {"distance": 6.0}),
    ]
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("evaluation")]
    assert [line.split("  (")[0] for line in told] == [
        "evaluation at step 2: distance 8", "evaluation at step 4: distance 6",
    ]


def test_the_row_of_the_same_step_has_the_figures_and_no_other(tmp_path: Path) -> None:
    observed(tmp_path, steps=4, every_steps=2, rows_every_steps=1)
    rows = lines_of(tmp_path / "metrics.jsonl")
    assert [row.get("evaluation/distance") for row in rows] == [None, 8.0, None, 6.0]
    assert [row.get("evaluation/step") for row in rows] == [None, 2, None, 4]
    assert rows[1]["evaluation/seconds"] <= rows[1]["seconds"]


def test_figures_between_two_rows_are_in_the_next_one(tmp_path: Path) -> None:
    observed(tmp_path, steps=6, every_steps=2, rows_every_steps=3)
    rows = lines_of(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["evaluation/step"], row["evaluation/distance"]) for row in rows] == [
        (3, 2, 8.0), (6, 6, 4.0),
    ]


def test_a_divergence_found_by_it_ends_the_run_before_the_next_step() -> None:
    def diverged(state: TrainState) -> Mapping[str, float]:
        raise DivergenceError("sample 3 is not of finite numbers")

    plan, state = small_plan(), small_state(small_plan())
    failures = Failures()
    stop = stop_for(failures)
    with pytest.raises(DivergenceError, match="sample 3"):
        run(state, plan, [EvaluationHook(diverged, every_steps=3, listeners=[], failures=failures), stop], steps=9)
    assert state.step == 3


def test_a_listener_that_cannot_write_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    plan, state = small_plan(), small_state(small_plan())
    failures = Failures()
    stop = stop_for(failures)
    listeners = [log_to(EventLog(tmp_path / "file" / "events.jsonl", enabled=True))]
    hook = EvaluationHook(Measured(), every_steps=1, listeners=listeners, failures=failures)
    with pytest.raises(UserError, match="could not write"):
        run(state, plan, [hook, stop], steps=9)
    assert state.step == 1
