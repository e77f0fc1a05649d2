"""Profiles of a run: the steps that were asked for, by the recipe or by a file, on the ranks that were named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_scale.core.run_folder import RunFolder
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import QuietHook, StepReport
from afm_scale.train.hooks.profile import ProfileConfig, ProfileHook
from afm_scale.train.hooks.request import Request
from afm_scale.train.state import TrainState
from tests.train.hooks.small import run, small_plan, small_state


def hook(folder: Path, failures: Failures | None = None, **settings: object) -> ProfileHook:
    of = RunFolder(folder)
    return ProfileHook(
        ProfileConfig(**settings), folder=of, rank=0, is_on_gpu=False, failures=failures or Failures(),
        events=EventLog(of.events, enabled=True), request=Request(of.profile_request, every_seconds=0.0),
    )


class Asks(QuietHook):
    """Puts the file there after a step."""

    def __init__(self, folder: Path, step: int) -> None:
        self._file, self._step = RunFolder(folder).profile_request, step

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if report.step == self._step:
            self._file.touch()


def steps_in(trace: Path) -> int:
    """How many steps a trace shows, by AdamW's marks."""
    events = json.loads(trace.read_text())["traceEvents"]
    return sum(str(event.get("name", "")).startswith("Optimizer.step") for event in events)


def events(folder: Path) -> list[tuple[int, int, str]]:
    return [
        (event["first"], event["step"], event["why"])
        for event in RunFolder(folder).read_events() if event["kind"] == "profile"
    ]


def test_the_steps_of_the_recipe_are_in_the_trace_and_no_others(tmp_path: Path) -> None:
    run(small_state(small_plan()), small_plan(), [hook(tmp_path, first_step=2, steps=3, rows=5)], steps=6)
    trace = tmp_path / "profiles" / "step_00000002_rank_00000.json"
    assert steps_in(trace) == 3
    table = trace.with_suffix(".txt").read_text()
    assert "Self CPU" in table and sum("aten::" in line for line in table.splitlines()) <= 5
    assert events(tmp_path) == [(2, 4, "hooks.profile")]
    assert {path.name for path in trace.parent.iterdir()} == {trace.name, trace.with_suffix(".txt").name}


def test_a_file_in_the_folder_asks_for_the_next_steps_once_and_goes(tmp_path: Path) -> None:
    run(small_state(small_plan()), small_plan(), [Asks(tmp_path, 3), hook(tmp_path, steps=2)], steps=8)
    assert events(tmp_path) == [(4, 5, "the file")]
    assert steps_in(tmp_path / "profiles" / "step_00000004_rank_00000.json") == 2
    assert not RunFolder(tmp_path).profile_request.exists()


def test_one_that_is_there_at_the_start_is_answered_and_a_second_one_too(tmp_path: Path) -> None:
    RunFolder(tmp_path).profile_request.touch()
    run(small_state(small_plan()), small_plan(), [Asks(tmp_path, 4), hook(tmp_path, steps=2)], steps=8)
    assert events(tmp_path) == [(1, 2, "the file"), (5, 6, "the file")]


def test_a_run_that_ends_before_writes_what_there_is_and_one_that_fails_nothing(tmp_path: Path) -> None:
    run(small_state(small_plan()), small_plan(), [hook(tmp_path / "a", first_step=2, steps=100)], steps=3)
    assert events(tmp_path / "a") == [(2, 3, "hooks.profile")]

    class Fails(QuietHook):
        def after_step(self, state: TrainState, report: StepReport) -> None:
            if report.step == 2:
                raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run(small_state(small_plan()), small_plan(), [hook(tmp_path / "b", first_step=2, steps=3), Fails()], steps=3)
    assert not (tmp_path / "b" / "profiles").exists()


def test_a_folder_that_cannot_be_written_is_a_failure_of_the_run_and_not_of_the_step(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("a file")
    failures = Failures()
    run(small_state(small_plan()), small_plan(), [hook(tmp_path, failures, first_step=1, steps=1)], steps=3)
    assert "profiles" in str(failures.first)
