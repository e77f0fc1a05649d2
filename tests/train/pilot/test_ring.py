"""The ring of discriminators: which ones stay, that what a checkpoint counts on is there, and how one comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from afm_scale.checkpoint.manifest import visible_checkpoints
from afm_scale.core.errors import ConfigError
from afm_scale.core.run_folder import RunFolder
from afm_scale.train.pilot.ring import thinned

from .game import acts, differing, game, play, save, values


def on_disk(folder: Path) -> list[int]:
    return sorted(step for step, _ in visible_checkpoints(RunFolder(folder).discriminators))


@pytest.mark.parametrize("keep", [2, 3, 5, 8, 16])
def test_a_ring_keeps_its_ends_and_ages_evenly_by_ratio(keep: int) -> None:
    every, ring = 10, ()
    for count in range(1, 1000):
        now = every * count
        before, ring = ring, thinned([*ring, now], now, keep, every)
        assert set(ring) <= {*before, now}  # nothing comes back
        assert len(ring) == min(count, keep)
        assert (ring[0], ring[-1]) == (every, now) or keep == 2
        ages = [now - step + every for step in ring]
        holes = [older / newer for older, newer in zip(ages, ages[1:], strict=False)]
        assert max(holes, default=1) <= max(2.5, count ** (2 / (keep - 1)))
        assert thinned(reversed(ring), now, keep, every) == ring


def test_discriminators_are_kept_at_their_cadence_and_thinned_out_files_go_after_a_checkpoint(tmp_path: Path) -> None:
    run = game(tmp_path, "checkpoint.keep_last=1")
    play(run, 7)
    assert run.state.pilot.ring == (2, 4, 6)
    save(run)
    assert on_disk(tmp_path) == [2, 4, 6]
    play(run, 13)
    run.pilot.before_save(run.state)  # the checkpoint itself is not there yet
    assert run.state.pilot.ring == thinned([2, 4, 6, 8, 10, 12], 12, 4, 2)
    assert set(on_disk(tmp_path)) >= {2, 4, 6, *run.state.pilot.ring}
    save(run)
    play(run, 17)
    save(run)
    play(run, 19)
    save(run)
    assert set(run.state.pilot.ring) <= set(on_disk(tmp_path)) and len(on_disk(tmp_path)) < 8


def test_a_run_that_goes_on_finds_its_ring_and_keeps_what_came_after_anew(tmp_path: Path) -> None:
    run = game(tmp_path)
    play(run, 5)
    save(run)
    ring = run.state.pilot.ring
    play(run, 9)  # lost
    run.pilot.settle()
    again = game(tmp_path)
    assert (again.state.step, again.state.pilot.ring) == (5, ring)
    play(again, 7)
    save(again)
    assert again.state.pilot.ring == (2, 4, 6)
    assert set(on_disk(tmp_path)) >= {2, 4, 6}


def test_after_going_back_with_what_it_remembers_later_ones_are_kept_anew(tmp_path: Path) -> None:
    run = game(tmp_path)
    play(run, 5)
    run.state.pilot = replace(run.state.pilot, ring=(2, 6, 8))  # of steps that are taken again
    play(run, 7)
    assert run.state.pilot.ring == (2, 6)
    run.pilot.settle()
    assert set(on_disk(tmp_path)) >= {2, 6}


@pytest.mark.parametrize("optimizer", [True, False])
def test_a_reload_by_rule_changes_the_discriminator_bit_for_bit_and_nothing_else(
    tmp_path: Path, optimizer: bool
) -> None:
    run = game(
        tmp_path, "pilot.reload={kind: rule, age: 5, cool_down: 3}", f"pilot.ring.optimizer={str(optimizer).lower()}"
    )
    play(run, 4)
    then = values(run)
    play(run, 9, {9: 3.0})
    before = values(run)
    assert run.pilot.steer(run.state)
    after = values(run)
    mine = {name for name in after if name.startswith("discriminator.")}
    if optimizer:
        mine |= {name for name in after if name.startswith("optimizer.discriminator.")}
    assert mine and differing({n: after[n] for n in mine}, {n: then[n] for n in mine}) == set()
    assert differing(after, before) <= mine and differing(after, before)
    assert acts(tmp_path) == [(9, "reload_discriminator", 4)]
    (reload,) = run.state.pilot.reloads
    assert (reload.step, reload.to) == (9, 4)


def test_a_damaged_discriminator_is_passed_over_for_an_older_one(tmp_path: Path) -> None:
    run = game(tmp_path, "pilot.reload={kind: rule, age: 4}")
    play(run, 2)
    then = values(run)
    play(run, 8, {8: 3.0})
    run.pilot.before_save(run.state)
    for file in RunFolder(tmp_path).discriminators.glob("step_00000004/*.distcp"):
        file.write_bytes(bytes(len(file.read_bytes())))
    run.pilot.steer(run.state)
    assert acts(tmp_path) == [(8, "reload_discriminator", 2)]
    found = values(run)
    assert not {name for name in differing(found, then) if name.startswith("discriminator.")}
    assert run.state.pilot.ring == (2, 6, 8)
    (torn,) = [event for event in RunFolder(tmp_path).read_events() if event["kind"] == "torn"]
    assert torn["folder"].endswith("step_00000004")


def test_a_ring_that_cannot_hold_two_is_told_with_what_it_takes(tmp_path: Path) -> None:
    run = game(tmp_path, "pilot.ring.most_bytes=1000")
    with pytest.raises(ConfigError, match=r"pilot\.ring\.most_bytes=1000: one discriminator has \d+ bytes"):
        play(run, 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["pilot.ring=null"], "has no earlier one to take; set pilot.ring"),
        (["hooks.evaluation=null"], "acts on evaluations, and there are none; set hooks.evaluation"),
        (["pilot.rules.stall=null"], "which nobody watches; set pilot.rules.stall"),
        (["pilot.reload={kind: trial, candidates: 5}"], "more than pilot.ring.keep=4 can hold"),
        (["pilot.reload={kind: trial, updates: 3, evaluations: 4}"], "more than pilot.reload.updates=3"),
    ],
)
def test_what_a_reload_lacks_is_told_before_anything_is_built(tmp_path: Path, settings: list, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        game(tmp_path, *settings)
