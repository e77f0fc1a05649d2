from __future__ import annotations

import math

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.core.schedules import Constant, Cosine, Piecewise
from afm_scale.core.typed import build


def published_cosine(half_step: int, num_half_steps: int, start: float, end: float) -> float:
    """The published schedule, which counts discriminator and generator updates."""
    if half_step >= num_half_steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * half_step / (num_half_steps - 1))) / 2


@pytest.mark.parametrize("num_half_steps", [2, 3, 20, 21, 1001])
def test_the_cosine_is_the_published_one_at_every_generator_half_step(num_half_steps: int) -> None:
    schedule = Cosine(start=0.2, end=0.005, steps=num_half_steps / 2)
    for step in range(num_half_steps):
        expected = published_cosine(2 * step + 1, num_half_steps, 0.2, 0.005)
        assert schedule(step) == pytest.approx(expected, rel=1e-14, abs=1e-15), step


def test_the_cosine_starts_near_its_start_and_stays_at_its_end() -> None:
    schedule = Cosine(start=1.0, end=-1.0, steps=1000)
    assert schedule(0) == pytest.approx(1.0, abs=1e-5)
    assert schedule(499) == pytest.approx(0.0, abs=2e-3)  # half way
    assert {schedule(step) for step in (999, 1000, 10**9)} == {-1.0}


def test_the_cosine_may_rise() -> None:
    values = [Cosine(start=0.0, end=1.0, steps=50)(step) for step in range(60)]
    assert values == sorted(values) and values[-1] == 1.0


def test_a_constant_stays() -> None:
    assert {Constant(value=0.3)(step) for step in (0, 1, 10**9)} == {0.3}


def test_piecewise_is_straight_between_points_and_constant_outside() -> None:
    schedule = Piecewise(points=((10, 1.0), (20, 3.0), (40, 0.0)))
    assert [schedule(step) for step in (0, 10, 15, 20, 30, 40, 10**6)] == [1.0, 1.0, 2.0, 3.0, 1.5, 0.0, 0.0]


def test_two_points_at_one_step_are_a_jump_to_the_later() -> None:
    schedule = Piecewise(points=((0, 1e-4), (100, 1e-4), (100, 8e-5), (200, 8e-5), (200, 3e-5)))
    assert [schedule(step) for step in (0, 99, 100, 199, 200, 900)] == [1e-4, 1e-4, 8e-5, 8e-5, 3e-5, 3e-5]


def test_a_line_into_a_jump_ends_at_the_earlier_point() -> None:
    schedule = Piecewise(points=((0, 0.0), (10, 10.0), (10, -1.0)))
    assert [schedule(step) for step in (9, 10)] == [9.0, -1.0]


@pytest.mark.parametrize("steps", [0, -1.0])
def test_a_cosine_without_length_is_refused(steps: float) -> None:
    with pytest.raises(ConfigError, match=f"steps: found {steps:g}, wanted a number above 0"):
        build(Cosine, {"start": 1.0, "end": 0.0, "steps": steps})


@pytest.mark.parametrize("points", [(), ((5, 1.0), (3, 1.0))])
def test_points_that_are_missing_or_out_of_order_are_refused(points: tuple) -> None:
    with pytest.raises(ConfigError, match=r"in order of step, found steps \["):
        Piecewise(points=points)
