"""Going back: to the newest good checkpoint, with the position in the data moved past the fault."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_scale.core.errors import DivergenceError
from afm_scale.core.run_folder import RunFolder
from afm_scale.core.types import Role
from afm_scale.run.hooks import build_observers
from afm_scale.train.pilot.acts import AdvancePhase, RollBack
from afm_scale.train.pilot.config import PhaseConfig, PilotConfig, UntilConfig
from afm_scale.train.pilot.decide import decide
from afm_scale.train.pilot.memory import RolledBack
from afm_scale.train.pilot.rolling_back import RollBackConfig, good
from afm_scale.train.steered import train_steered

from .game import Game, acts, digest, game, plant, play, position, save, values
from .small import history, ready

GUARD = "pilot.guard={spike: null, most_skips: 1}"
BACK = "pilot.roll_back={limit: 2}"


def spoilt(of: Game, *positions: range, role: Role = Role.GENERATOR) -> None:
    """A player's gradient, by these samples."""
    places = {place for of_one in positions for place in of_one}
    plant(of, role, places, lambda loss: loss * math.nan, rank=0, at=position)


def test_the_newest_that_is_good_comes_first_and_one_that_led_to_a_fault_again_last() -> None:
    found = [(40, Path("d")), (30, Path("c")), (20, Path("b"))]
    assert good(found, 45, ()) == (Path("d"), Path("c"), Path("b"))
    assert good(found, 30, ()) == (Path("c"), Path("b"))
    assert good(found, 45, [RolledBack(step=44, to=40)]) == (Path("c"), Path("b"), Path("d"))
    assert good(found, 45, [RolledBack(step=44, to=30)])[0] == Path("d")  # another was saved since
    assert good(found[:1], 45, [RolledBack(step=44, to=40)]) == (Path("d"),)  # better than none
    assert good(found, 10, ()) == ()


def test_a_divergence_goes_back_to_where_quality_was_last_good_and_nothing_else_is_decided() -> None:
    phases = [ready(PhaseConfig(name="a", until=UntilConfig(updates=1))), ready(PhaseConfig(name="b"))]
    memory = history((2.0, 1.5, 9.0, 9.0), fired=("divergence",))
    acts_of = {
        back: list(decide(PilotConfig(roll_back=back), phases, memory, step=40, images_seen=0))
        for back in (None, RollBackConfig())
    }
    (act,) = acts_of[RollBackConfig()]
    assert isinstance(act, RollBack) and act.not_after == 20
    assert [type(act) for act in acts_of[None]] == [AdvancePhase]
    done = replace(memory, is_pending=False)
    assert not [
        act for act in decide(PilotConfig(roll_back=RollBackConfig()), phases, done, step=41, images_seen=0)
        if isinstance(act, RollBack)
    ]


@pytest.mark.parametrize(("update", "role", "samples", "skips"), [
    ("alternating", Role.GENERATOR, 16, 1),
    ("one_pass", Role.DISCRIMINATOR, 8, 2),  # neither moves: what G learns comes out of D's gradient
])
def test_after_going_back_a_run_is_one_from_that_checkpoint_with_other_data_bit_for_bit(
    tmp_path: Path, update: str, role: Role, samples: int, skips: int
) -> None:
    settings = (GUARD, BACK, f"objective.update={update}")
    run = game(tmp_path / "run", *settings)
    play(run, 4)
    save(run)
    first = position(run) + samples + 1
    spoilt(run, range(first, first + 2 * samples), role=role)  # its second and third step
    play(run, 8)
    skipped = [(step, "skip", None) for step in (6, 7) for _ in range(skips)]
    assert acts(tmp_path / "run") == [*skipped, (7, "roll_back", 4)]
    assert run.state.pilot.roll_backs == (RolledBack(step=7, to=4),)

    wanted = game(tmp_path / "wanted", *settings)
    play(wanted, 4)
    save(wanted)  # which is where the window of the signals is read
    memory = replace(wanted.state.pilot, roll_backs=run.state.pilot.roll_backs)
    scalars = wanted.state.scalars()
    moved = {"consumed": scalars["data"]["consumed"] + 3 * samples}
    wanted.state.data.load_state_dict(moved)
    wanted.state._batches = None
    wanted.state.pilot = memory
    play(wanted, 8)
    assert digest(run) == digest(wanted)


def test_what_was_gone_back_to_is_saved_at_once_with_the_data_that_come_next(tmp_path: Path) -> None:
    run = game(tmp_path, GUARD, BACK)
    play(run, 4)
    save(run)
    spoilt(run, range(position(run), position(run) + 33))
    play(run, 9)
    killed = game(tmp_path, GUARD, BACK)  # nothing was saved after it
    assert killed.state.step == 4 and killed.state.pilot.roll_backs == (RolledBack(step=6, to=4),)
    assert position(killed) == 64 + 32
    play(killed, 9)
    assert digest(killed) == digest(run)


def test_again_and_again_an_older_one_is_next_and_then_the_run_ends(tmp_path: Path) -> None:
    run = game(tmp_path, GUARD, BACK)
    for step in (2, 4):
        play(run, step)
        save(run)
    spoilt(run, range(position(run), 10_000))
    with pytest.raises(DivergenceError, match=r"(?s)not made.*went back .* 2 times before.*roll_back.limit"):
        play(run, 9)
    assert [act for act in acts(tmp_path) if act[1] == "roll_back"] == [(6, "roll_back", 4), (6, "roll_back", 2)]
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == ["step_00000002"]


def test_a_run_that_has_saved_nothing_says_so_and_one_that_may_not_go_back_ends_as_ever(tmp_path: Path) -> None:
    run = game(tmp_path / "a", GUARD, BACK)
    spoilt(run, range(10_000))
    with pytest.raises(DivergenceError, match=r"not made.*nothing to go back to.*checkpoint.every_steps"):
        play(run, 4)
    run = game(tmp_path / "b", GUARD)
    play(run, 2)
    save(run)
    spoilt(run, range(10_000))
    with pytest.raises(DivergenceError, match="not made, the last at step 4"):
        play(run, 6)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path: Path) -> None:
    run = game(tmp_path, GUARD, BACK)
    for step in (2, 4):
        play(run, step)
        save(run)
    part = next((tmp_path / "checkpoints" / "step_00000004").glob("*.distcp"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    spoilt(run, range(position(run), position(run) + 33))
    play(run, 6)
    assert run.state.pilot.roll_backs == (RolledBack(step=6, to=2),)
    assert [event["folder"][-1] for event in RunFolder(tmp_path).read_events() if event["kind"] == "torn"] == ["4"]


def test_quality_that_rises_sharply_brings_the_run_back_and_the_next_phase_may_begin(tmp_path: Path) -> None:
    phases = "pilot.phases=[{name: a, until: {updates: 100}}, {name: b, learning_rate: {generator: 1e-5}}]"
    run = game(tmp_path, phases, "pilot.roll_back={then: next_phase}", "pilot.rules.stall=null")
    before = {}
    for step, quality in ((2, 3.0), (4, 2.0), (6, 9.0), (8, 9.5)):
        play(run, step, {step: quality})
        if step == 8:
            run.state.pilot = replace(run.state.pilot, fired=("divergence",))
        save(run)
        before[step] = values(run)
    play(run, 9)  # the boundary of step 8 comes first
    assert acts(tmp_path) == [(8, "roll_back", 4)]
    assert run.state.pilot.phase == 1 and run.state.pilot.began == 4
    assert run.state.players[Role.GENERATOR].learning_rate(5) == 1e-5
    again = game(tmp_path, phases, "pilot.roll_back={then: next_phase}", "pilot.rules.stall=null")
    assert again.state.step == 4  # the later ones are gone
    assert all(torch.equal(value, before[4][name]) for name, value in values(again).items())


def test_hooks_begin_anew_and_rows_of_what_is_given_up_are_forgotten(tmp_path: Path) -> None:
    run = game(
        tmp_path, GUARD, BACK, "checkpoint.every_steps=4", "hooks.metrics={every_steps: 1, tensorboard: false}",
        "hooks.divergence={every_steps: 1}", "loop.steps=10", "hooks.samples=null",
    )
    observers = build_observers(run.config, run.plan, run.state, run.manager, "id")
    of = replace(run, pilot=observers.pilot)
    spoilt(of, range(16 * 5 + 1, 16 * 7 + 1))
    train_steered(of.state, of.plan, of.config.loop, observers.hooks, of.pilot)
    rows = [json.loads(line) for line in RunFolder(tmp_path).metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["step"] for row in rows if "generator/total" not in row] == []  # of updates that were not made
    assert of.state.pilot.roll_backs == (RolledBack(step=7, to=4),)
    assert [path.name[-2:] for path in sorted((tmp_path / "checkpoints").iterdir())] == ["04", "08", "10"]


def test_a_loss_that_is_not_finite_brings_the_run_back_where_nothing_is_guarded(tmp_path: Path) -> None:
    run = game(tmp_path, BACK, "hooks.divergence={every_steps: 1}", "checkpoint.every_steps=2", "loop.steps=6",
               "hooks.samples=null")
    observers = build_observers(run.config, run.plan, run.state, run.manager, "id")
    of = replace(run, pilot=observers.pilot)
    spoilt(of, range(16 * 3, 16 * 3 + 17))
    train_steered(of.state, of.plan, of.config.loop, observers.hooks, of.pilot)
    assert of.state.step == 6 and all(bool(torch.isfinite(value).all()) for value in values(of).values())
    assert of.state.pilot.roll_backs[0].to == 2
