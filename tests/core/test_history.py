"""What a run noted of steps that it took again is no part of its history, whether it was killed or rolled back."""

from __future__ import annotations

import math
from typing import Any

import pytest

from afm_scale.core.errors import DataError
from afm_scale.core.history import Curve, curves, history


def start(step: int) -> dict[str, Any]:
    return {"kind": "start", "step": step}


def act(step: int, name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "act", "step": step, "act": name, "why": "", **more}


def evaluation(step: int, value: float = 1.0) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "figures": {"fid": value}}


def told(*events: dict[str, Any]) -> list[tuple[str, int]]:
    return [(event.get("act", event["kind"]), event["step"]) for event in history(events)]


def test_a_run_that_nothing_happened_to_is_as_it_was_written() -> None:
    events = [start(0), evaluation(10), act(10, "skip"), {"kind": "save", "step": 20}]
    assert history(events) == events


def test_after_a_kill_what_was_noted_of_later_steps_is_taken_again() -> None:
    before = [start(0), evaluation(10, 5.0), evaluation(20, 4.0), act(20, "skip"), evaluation(30, 3.0)]
    after = [start(10), evaluation(20, 4.5)]
    assert history([*before, *after]) == [start(0), evaluation(10, 5.0), *after]


def test_a_run_killed_twice_at_falling_steps_keeps_what_neither_lost() -> None:
    assert told(start(0), evaluation(10), evaluation(20), start(20), evaluation(30), start(10), evaluation(20)) == [
        ("start", 0), ("evaluation", 10), ("start", 10), ("evaluation", 20),
    ]


@pytest.mark.parametrize("repeated", [
    act(10, "reload_discriminator"), {"kind": "phase", "step": 10, "phase": "b"},
    {"kind": "rule", "step": 10, "rule": "stall"}, {"kind": "trial", "step": 10, "chosen": 5},
], ids=lambda event: event["kind"])
def test_what_was_decided_after_the_checkpoint_of_its_step_and_decided_again_counts_once(
    repeated: dict[str, Any]
) -> None:
    first, second = {"time": "1", **repeated}, {"time": "2", **repeated}
    assert history([start(0), evaluation(10), first, start(10), second]) == [
        start(0), evaluation(10), start(10), second
    ]
    # One that the checkpoint remembers is not noted again, and stands.
    assert history([start(0), first, start(10), evaluation(20)]) == [start(0), first, start(10), evaluation(20)]


def test_a_roll_back_stays_and_takes_away_what_was_between() -> None:
    back = act(35, "roll_back", to=20)
    assert history([start(0), evaluation(20), evaluation(30), back, evaluation(30, 2.0)]) == [
        start(0), evaluation(20), back, evaluation(30, 2.0),
    ]


def test_two_roll_backs_to_the_same_step_are_two() -> None:
    back = act(35, "roll_back", to=20)
    assert told(start(0), back, evaluation(30), back, evaluation(30), back) == [("start", 0), *[("roll_back", 35)] * 3]


def test_a_roll_back_that_a_kill_undid_and_that_comes_again_is_one() -> None:
    back = act(35, "roll_back", to=20)
    assert told(start(0), back, start(20), back, evaluation(30)) == [
        ("start", 0), ("start", 20), ("roll_back", 35), ("evaluation", 30),
    ]


def test_a_roll_back_of_before_the_checkpoint_stays_after_a_kill() -> None:
    """The checkpoint of 25 was written after the roll-back from 35 to 20."""
    assert told(start(0), act(35, "roll_back", to=20), {"kind": "save", "step": 25}, evaluation(30), start(25)) == [
        ("start", 0), ("roll_back", 35), ("save", 25), ("start", 25),
    ]


def test_what_is_of_no_step_stays() -> None:
    torn = {"kind": "torn", "folder": "x"}
    assert history([start(0), torn, start(0)]) == [start(0), torn, start(0)]


@pytest.mark.parametrize("to", ["20", None, True, 2.5, [20]])
def test_a_roll_back_to_no_step_is_told(to: Any) -> None:
    with pytest.raises(DataError, match="a roll-back to .*, wanted a step"):
        history([start(0), act(35, "roll_back", to=to)])


def test_curves_have_the_values_of_their_steps_and_nan_for_what_was_not_finite() -> None:
    found = curves([{"step": 1, "a": 1.5}, {"step": 2, "a": None, "b": 2}, {"step": 3, "b": 10**400}])
    assert found.keys() == {"a", "b"}
    assert list(found["a"].steps) == [1, 2] and list(found["b"].steps) == [2, 3]
    assert found["a"].values[0] == 1.5 and math.isnan(found["a"].values[1])
    assert found["b"].values[0] == 2.0 and math.isnan(found["b"].values[1])


def test_rows_of_steps_that_come_again_take_the_place_of_the_earlier_ones() -> None:
    before = [{"step": step, "a": step, "b": 0} for step in (1, 2, 3, 4)]
    found = curves([*before, {"step": 2, "a": 20}, {"step": 4, "a": 40}])
    assert list(found["a"].steps) == [1, 2, 4] and list(found["a"].values) == [1, 20, 40]
    assert list(found["b"].steps) == [1]


@pytest.mark.parametrize("value", ["1", [1], {}, True])
def test_a_row_whose_value_is_no_number_is_told_with_its_step_and_name(value: Any) -> None:
    with pytest.raises(DataError, match="the row of step 2: a: .* is no number"):
        curves([{"step": 1, "a": 1}, {"step": 2, "a": value}])


def test_a_curve_forgets_a_step_that_comes_again() -> None:
    curve = Curve()
    for step, value in ((10, 1.0), (20, 2.0), (20, 3.0)):
        curve.add(step, value)
    assert list(curve.steps) == [10, 20] and list(curve.values) == [1.0, 3.0]
