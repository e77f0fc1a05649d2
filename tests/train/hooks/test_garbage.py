from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.core.typed import build
from afm_scale.train.hooks.garbage import GarbageConfig, GarbageHook
from afm_scale.train.hooks.hook import QuietHook, StepReport
from afm_scale.train.state import TrainState
from tests.train.hooks.small import run, small_plan, small_state


@pytest.fixture(autouse=True)
def _collecting_afterwards() -> Iterator[None]:
    yield
    gc.enable()


class Circles(QuietHook):
    """Leaves a circle of two after each step, and counts those that are left."""

    def __init__(self) -> None:
        self.alive: list[int] = []

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self.alive.append(sum(type(thing) is _Half for thing in gc.get_objects()) // 2)
        first, second = _Half(), _Half()
        first.other, second.other = second, first


class _Half:
    other: _Half


def test_nothing_is_collected_between_its_steps_and_everything_at_them() -> None:
    circles = Circles()
    run(small_state(small_plan()), small_plan(), [circles, GarbageHook(GarbageConfig(every_steps=3))], steps=7)
    assert circles.alive == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("was_on", [True, False])
def test_collection_is_afterwards_as_it_was_before_a_failed_run_too(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()

    class Fails(QuietHook):
        def after_step(self, state: TrainState, report: StepReport) -> None:
            assert not gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(small_state(small_plan()), small_plan(), [GarbageHook(GarbageConfig()), Fails()], steps=2)
    assert gc.isenabled() is was_on


def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="every_steps: found 0, wanted a whole number from 1"):
        build(GarbageConfig, {"every_steps": 0})
