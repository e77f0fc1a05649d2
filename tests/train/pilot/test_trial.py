"""A trial: short branches from the same state, of which nothing is left but the choice; under every plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from afm_scale.core.errors import DivergenceError
from afm_scale.core.run_folder import RunFolder
from afm_scale.core.types import Role
from afm_scale.train.hooks.hook import HookList
from afm_scale.train.loop import train
from afm_scale.train.pilot.ring import Ring
from afm_scale.train.pilot.trial import Trial, slope
from afm_scale.train.state import TrainState
from tests.equivalence import Layout
from tests.ranks import run_ranks

from .game import ALONE, QUALITY, Game, acts, differing, digest, game, play, same_on_all, save, under_every_plan, values

TRIAL = "pilot.reload={kind: trial, candidates: 2, updates: 2, evaluations: 1, cool_down: 3}"


def trial_of(of: Game, figures: list[float]) -> Trial:
    """Over two candidates; branches find these qualities, one after another, and a last one that is asked for."""
    ring: Ring = of.pilot._reloading.ring
    found = iter(figures)

    def measure(state: TrainState) -> dict[str, float]:
        value = next(found)
        if value < 0:
            raise DivergenceError("samples are not finite")
        return {QUALITY: value}

    def train_until(state: TrainState, step: int) -> None:
        train(state, of.plan, replace(of.config.loop, steps=step), HookList([]))

    return Trial(
        ring, of.plan, updates=2, evaluations=1, quality=QUALITY, measure=measure, train_until=train_until
    )


def test_the_slope_is_that_of_least_squares() -> None:
    assert slope((0, 10, 20), (4.0, 3.0, 2.0)) == pytest.approx(-0.1)
    assert slope((0, 1, 2, 3), (1.0, 3.0, 2.0, 5.0)) == pytest.approx(1.1)
    assert slope((0, 10, 20), (None, 3.0, 2.0)) == pytest.approx(-0.1)
    assert slope((0, 10, 20), (4.0, 3.0, None)) is None
    assert slope((0, 10, 20), (4.0, None)) is None


@pytest.mark.parametrize(
    ("figures", "wanted"),
    [
        ((9.0, 3.0, 8.0, 7.0), None),  # where it begins; the present one's, that of step 4, that of step 2
        ((9.0, 5.0, 4.0, 4.5), 4),
        ((9.0, 5.0, 5.0, 5.0), None),  # the present one wins where none is better
        ((9.0, 5.0, -1.0, 4.5), 2),  # one that diverges loses
        ((9.0, float("nan"), 8.0, 8.0), 4),  # so does the present one; of equals the newest
    ],
)
def test_the_best_slope_wins_and_the_state_is_what_it_was(tmp_path: Path, figures: tuple, wanted: int | None) -> None:
    run = game(tmp_path)
    play(run, 5)
    before = digest(run)
    branches, chosen = trial_of(run, list(figures))(run.state, (2, 4))
    assert [branch.to for branch in branches] == [None, 4, 2]
    assert chosen == wanted
    assert digest(run) == before


def test_branches_differ_by_the_discriminator_alone_and_the_run_goes_on_undisturbed(tmp_path: Path) -> None:
    run, undisturbed = game(tmp_path / "a"), game(tmp_path / "b")
    play(run, 5)
    play(undisturbed, 8)
    seen = []

    def measure(state: TrainState) -> dict[str, float]:
        seen.append((state.step, values(run)))
        return {QUALITY: 1.0}

    trial = trial_of(run, [])
    trial._measure = measure
    trial(run.state, (4,))
    (first, begins), (last, present), (_, earlier) = seen
    assert (first, last) == (5, 7)
    assert differing(begins, present) and differing(present, earlier)
    play(run, 8)
    assert differing(values(run), values(undisturbed)) == set()
    assert run.state.scalars()["data"] == undisturbed.state.scalars()["data"]


def of_a_rank(folder: Path, layout: Layout) -> tuple:
    """A stall at step 5, decided by trial with the run's own quality, as two ranks with a share of the data each."""
    run = game(folder, TRIAL, layout=layout)
    play(run, 4)
    then = values(run)
    save(run)
    play(run, 5, {5: 3.0})
    before = values(run)
    counted = run.state.scalars()
    assert run.pilot.steer(run.state)
    after = values(run)
    assert run.state.scalars()["data"] == counted["data"]
    (reload,) = run.state.pilot.reloads
    changed = differing(after, before)
    if reload.to is None:
        assert not changed
    else:
        assert changed and all("discriminator" in name for name in changed)
    if reload.to == 4:
        mine = [name for name in after if "discriminator" in name]
        assert not differing({name: after[name] for name in mine}, {name: then[name] for name in mine})
    # By rule as well, whatever the trial found: the one of step 2 is on the disk.
    run.pilot._reloading.ring.put(run.state, 4)
    put = {name: value for name, value in values(run).items() if "discriminator" in name}
    assert not differing(put, {name: then[name] for name in put})
    play(run, 7)
    same = same_on_all(values(run))
    return reload.to, same, run.state.players.keys() >= {Role.DISCRIMINATOR}


@under_every_plan
def test_under_every_plan_all_ranks_decide_the_same_and_hold_the_same(layout: Layout, tmp_path: Path) -> None:
    found = run_ranks(2, of_a_rank, tmp_path, layout, timeout=120)
    assert found[0] == found[1] and found[0][1:] == (True, True)
    (trial,) = [event for event in RunFolder(tmp_path).read_events() if event["kind"] == "trial"]
    assert [candidate["step"] for candidate in trial["candidates"]] == [None, 4, 2]
    assert all(len(candidate["quality"]) == 2 for candidate in trial["candidates"])
    assert trial["chosen"] == found[0][0]
    assert acts(tmp_path) == ([] if trial["chosen"] is None else [(5, "reload_discriminator", trial["chosen"])])


def test_a_trial_in_a_run_is_one_event_and_the_winner_comes_back(tmp_path: Path) -> None:
    run = game(tmp_path, TRIAL, layout=ALONE)
    play(run, 5, {5: 3.0})
    assert run.pilot.steer(run.state)
    (trial,) = [event for event in RunFolder(tmp_path).read_events() if event["kind"] == "trial"]
    assert trial["step"] == 5 and {"step", "slope", "quality"} == set(trial["candidates"][0])
    assert [reload.to for reload in run.state.pilot.reloads] == [trial["chosen"]]
