from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from afm_scale.core.errors import CheckpointError, UserError
from afm_scale.core.stopping import SIGNALS
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import QuietHook, StepReport
from afm_scale.train.hooks.stop import StopHook
from afm_scale.train.state import TrainState
from tests.ranks import run_ranks
from tests.train.hooks.small import run, small_plan, small_state


class At(QuietHook):
    """Calls something after one step, or at the end (step None)."""

    def __init__(self, step: int | None, action: object) -> None:
        self._step = step
        self._action = action

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if report.step == self._step:
            self._action()

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if self._step is None:
            self._action()


def stop_hook(folder: Path, failures: Failures | None = None) -> StopHook:
    plan = small_plan()
    return StopHook(plan, failures or Failures(), EventLog(folder / "events.jsonl", enabled=plan.rank == 0))


def fail(failures: Failures, error: UserError) -> None:
    with failures.kept():
        raise error


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_loop_after_the_step_it_came_in(tmp_path: Path, number: signal.Signals) -> None:
    plan, stop = small_plan(), stop_hook(tmp_path)
    here = signal.signal(number, signal.SIG_DFL)  # whoever started these tests may have it ignored
    try:
        state = small_state(plan)
        run(state, plan, [At(3, lambda: os.kill(os.getpid(), number)), stop], steps=10)
        assert (state.step, stop.signal) == (3, number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, here)
    (event,) = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["signal"], event["step"]) == ("signal", number.name, 3)


def test_without_a_signal_nothing_stops(tmp_path: Path) -> None:
    plan, stop = small_plan(), stop_hook(tmp_path)
    state = small_state(plan)
    run(state, plan, [stop], steps=4)
    assert (state.step, stop.signal) == (4, None)
    assert not (tmp_path / "events.jsonl").exists()


def test_a_signal_while_the_run_ends_is_not_lost(tmp_path: Path) -> None:
    plan, stop = small_plan(), stop_hook(tmp_path)
    run(small_state(plan), plan, [At(None, lambda: signal.raise_signal(signal.SIGTERM)), stop], steps=2)
    assert stop.signal is signal.SIGTERM


def test_an_error_of_one_hook_ends_the_run_at_that_step(tmp_path: Path) -> None:
    plan, failures = small_plan(), Failures()
    stop = stop_hook(tmp_path, failures)
    state, before = small_state(plan), signal.getsignal(signal.SIGTERM)
    with pytest.raises(CheckpointError, match="disk full"):
        run(state, plan, [At(2, lambda: fail(failures, CheckpointError("disk full"))), stop], steps=5)
    assert state.step == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_users_errors_wait_for_the_other_ranks() -> None:
    with pytest.raises(ZeroDivisionError), Failures().kept():
        1 / 0  # noqa: B018


SECOND_SIGNAL = """
import signal, sys, time
from pathlib import Path
from tests.train.hooks.test_stop import At, stop_hook
from tests.train.hooks.small import run, small_plan, small_state

def busy():
    print("busy", flush=True)
    for _ in range(600):
        time.sleep(0.05)

plan = small_plan()
run(small_state(plan), plan, [At(1, busy), stop_hook(Path(sys.argv[1]))], steps=2)
"""


def test_a_second_signal_ends_the_process_at_once_but_an_echo_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SECOND_SIGNAL, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)  # as a launcher passes on what the terminal sent as well
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def _signal_to_rank_1(folder: Path) -> tuple[int, str]:
    plan, stop = small_plan(), stop_hook(folder)
    state = small_state(plan)
    hooks = [At(3, lambda: signal.raise_signal(signal.SIGUSR1)), stop] if plan.rank == 1 else [stop]
    run(state, plan, hooks, steps=10)
    assert stop.signal is not None
    return state.step, stop.signal.name


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    assert run_ranks(3, _signal_to_rank_1, tmp_path) == [(4, "SIGUSR1")] * 3
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 1


def _failure_on_rank_1(folder: Path, step: int | None) -> tuple[int, str, str]:
    plan, failures = small_plan(), Failures()
    state, stop = small_state(plan), stop_hook(folder, failures)
    failing = At(step, lambda: fail(failures, CheckpointError("could not write shard 1")))
    with pytest.raises(UserError) as caught:
        run(state, plan, [failing, stop] if plan.rank == 1 else [stop], steps=5)
    return state.step, type(caught.value).__name__, str(caught.value)


@pytest.mark.parametrize(("step", "stops_at"), [(2, 3), (5, 5), (None, 5)])
def test_an_error_of_one_rank_is_raised_by_all_at_the_same_step(
    tmp_path: Path, step: int | None, stops_at: int
) -> None:
    found = run_ranks(2, _failure_on_rank_1, tmp_path, step)
    assert found == [(stops_at, "CheckpointError", "could not write shard 1")] * 2


class FailsToStart(QuietHook):
    def __init__(self, failures: Failures) -> None:
        self._failures = failures

    def on_start(self, state: TrainState) -> None:
        fail(self._failures, UserError("no place for metrics"))


def _failure_at_the_start_of_rank_1(folder: Path) -> int:
    plan, failures = small_plan(), Failures()
    state, stop = small_state(plan), stop_hook(folder, failures)
    with pytest.raises(UserError, match="no place for metrics"):
        run(state, plan, [FailsToStart(failures), stop] if plan.rank == 1 else [stop], steps=5)
    return state.step


def test_an_error_at_the_start_of_one_rank_stops_all_before_the_first_step(tmp_path: Path) -> None:
    assert run_ranks(2, _failure_at_the_start_of_rank_1, tmp_path) == [0, 0]
