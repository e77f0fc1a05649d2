"""The pilot in a run: phases follow each other, the average comes back, and what it knows is in every checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.core.run_folder import RunFolder
from afm_scale.core.schedules import Constant, Piecewise
from afm_scale.core.typed import build, to_mapping
from afm_scale.core.types import Role
from afm_scale.train.pilot.config import PhaseConfig, PilotConfig, PlateauConfig, UntilConfig
from afm_scale.train.pilot.decide import decide
from afm_scale.train.pilot.memory import Memory
from afm_scale.train.pilot.phases import why_over
from afm_scale.train.state import Scalars
from tests.train.hooks.small import small_plan, small_state

from .small import QUALITY, history, point, ready, steered

PLATEAU = UntilConfig(plateau=PlateauConfig(patience=2, least_improvement=0.1))


def over(until: UntilConfig, memory: Memory, step: int = 0, images: int = 0, epoch: int | None = None) -> str | None:
    return why_over(until, memory, step=step, images_seen=images, images_per_epoch=epoch, quality=QUALITY)


def test_a_phase_ends_after_so_many_updates_of_its_own() -> None:
    memory = Memory(began=7)
    assert over(UntilConfig(updates=5), memory, step=11) is None
    assert over(UntilConfig(updates=5), memory, step=12) == "5 updates"


def test_a_phase_ends_after_so_many_epochs_of_its_own() -> None:
    memory = Memory(began_images=100)
    assert over(UntilConfig(epochs=1.5), memory, images=249, epoch=100) is None
    assert over(UntilConfig(epochs=1.5), memory, images=250, epoch=100) == "1.5 epochs"


@pytest.mark.parametrize(
    ("qualities", "is_over"),
    [
        ((4.0, 3.0), False),  # not more than the patience
        ((4.0, 3.9, 3.7), True),  # 7.5 percent better, where 10 count
        ((4.0, 3.9, 3.5), False),
        ((4.0, 5.0, 3.5), False),  # the best of the last two counts
        ((4.0, None, None), True),  # not finite is no improvement
        ((None, 4.0, 3.9), False),  # anything finite is one over nothing
    ],
)
def test_a_plateau_is_a_best_that_stays_nearly_the_same(qualities: tuple, is_over: bool) -> None:
    assert (over(PLATEAU, history(qualities)) is not None) is is_over


def test_a_plateau_is_looked_for_among_the_evaluations_of_the_phase_alone_and_once_for_each() -> None:
    flat = (4.0, 4.0, 4.0)
    assert over(PLATEAU, history(flat)) is not None
    assert over(PLATEAU, history(flat, is_pending=False)) is None
    assert over(PLATEAU, history(flat, phase=1, began=30)) is None


def test_the_last_phase_ends_the_run_and_the_average_comes_back_before_a_phase_does() -> None:
    config = PhaseConfig(name="a", average_into_generator="every_evaluation", until=UntilConfig(updates=30))
    acts = list(decide(PilotConfig(), [ready(config)], history((4.0, 3.0, 2.0)), step=30, images_seen=0))
    assert [type(act).__name__ for act in acts] == ["AverageIntoGenerator", "Stop"]


def test_phases_follow_each_other_with_rates_counted_from_their_first_update(tmp_path: Path) -> None:
    plan = small_plan()
    state = small_state(plan)
    rising = Piecewise(points=((0, 1e-4), (2, 3e-4)))
    phases = [
        ready(PhaseConfig(name="one", until=UntilConfig(updates=2)), generator=Constant(value=1e-3)),
        ready(PhaseConfig(name="two", until=UntilConfig(updates=3)), generator=rising),
    ]
    told = steered(state, plan, PilotConfig(), phases, tmp_path, steps=100)
    assert told.rates == pytest.approx([1e-3, 1e-3, 1e-4, 2e-4, 3e-4])
    assert state.step == 5
    events = list(RunFolder(tmp_path).read_events())
    assert [(event["kind"], event["step"], event.get("phase", event.get("act"))) for event in events] == [
        ("phase", 0, "one"), ("act", 2, "advance_phase"), ("phase", 2, "two"), ("act", 5, "stop"),
    ]


def test_the_average_becomes_the_weights_at_an_evaluation_before_the_next_step(tmp_path: Path) -> None:
    plan = small_plan()
    phases = [ready(PhaseConfig(name="one", average_into_generator="every_evaluation"))]
    state = small_state(plan)
    told = steered(state, plan, PilotConfig(), phases, tmp_path, steps=2, qualities={1: 2.0, 2: 1.0})
    weights, average = (module.state_dict() for module in (state.players[Role.GENERATOR].module, state.average.network))
    assert not torch.equal(weights["mix.weight"], average["mix.weight"])
    assert told.pilot.steer(state)
    assert all(torch.equal(weights[name], average[name]) for name in weights)
    assert [event["act"] for event in RunFolder(tmp_path).read_events() if event["kind"] == "act"] == [
        "average_into_generator", "average_into_generator",
    ]


def test_a_phase_may_begin_with_optimizers_as_new(tmp_path: Path) -> None:
    plan = small_plan()
    state = small_state(plan)
    phases = [
        ready(PhaseConfig(name="one", until=UntilConfig(updates=3))),
        ready(PhaseConfig(name="two", optimizer="reset", until=UntilConfig(updates=1))),
    ]
    steered(state, plan, PilotConfig(), phases, tmp_path, steps=100)
    steps = [
        value for name, value in plan.optimizer_state_dict(state.players[Role.GENERATOR]).items()
        if name.endswith(".step")
    ]
    assert steps and all(float(step) == 1 for step in steps)


def test_signals_are_means_over_the_steps_between_two_evaluations_also_across_a_save(tmp_path: Path) -> None:
    plan = small_plan()
    whole, stopped = small_state(plan), small_state(plan)
    phases = [ready(PhaseConfig(name="one"))]
    qualities = {3: 2.0, 7: 1.0}
    steered(whole, plan, PilotConfig(), phases, tmp_path / "whole", steps=8, qualities=qualities)

    for until in (5, 8):
        steered(stopped, plan, PilotConfig(), phases, tmp_path / "stopped", steps=until, qualities=qualities)
        kept = build(Scalars, stopped.scalars())
        stopped.load_scalars(kept)
    assert [point.step for point in stopped.pilot.points] == [3, 7]
    for found, wanted in zip(stopped.pilot.points, whole.pilot.points, strict=True):
        assert found.signals == pytest.approx(wanted.signals, rel=1e-12)
    assert kept.pilot == stopped.pilot


def test_what_the_pilot_knows_is_plain_and_comes_back_as_it_was() -> None:
    memory = history((4.0, None, 2.0), phase=1, began=20)
    assert build(Memory, to_mapping(memory)) == memory
    assert [found.step for found in memory.of_phase()] == []
    assert point(30, 1.0, 1) in history((1.0,), points=(point(30, 1.0, 1),), phase=1, began=20).of_phase()


def test_a_figure_that_the_evaluation_does_not_have_is_told_with_those_it_has(tmp_path: Path) -> None:
    plan = small_plan()
    state = small_state(plan)
    with pytest.raises(ConfigError, match=r"pilot\.diversity 'spread': .* gives frechet_distance; name one of these"):
        steered(
            state, plan, PilotConfig(diversity="spread"), [ready(PhaseConfig(name="a"))], tmp_path, steps=2,
            qualities={1: 1.0},
        )


def test_a_rule_that_holds_is_one_event_with_its_evidence_and_is_remembered(tmp_path: Path) -> None:
    plan = small_plan()
    state = small_state(plan)
    steered(
        state, plan, PilotConfig(), [ready(PhaseConfig(name="a"))], tmp_path, steps=4,
        qualities={1: 2.0, 2: 9.0, 3: 8.0, 4: 2.0},
    )
    (event,) = [event for event in RunFolder(tmp_path).read_events() if event["kind"] == "rule"]
    assert (event["step"], event["rule"]) == (3, "divergence")
    assert event["evidence"] == {"quality": 8.0, "best": 2.0, "limit": 6.0}
    assert state.pilot is not None and state.pilot.fired == ()  # of the newest
