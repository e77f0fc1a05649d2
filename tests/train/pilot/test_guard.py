"""The guard: an update of a gradient that is not finite, or spikes, leaves everything as it was, on every rank."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from afm_scale.core.errors import DivergenceError
from afm_scale.core.run_folder import RunFolder
from afm_scale.core.types import Role
from afm_scale.train.pilot.guard import GuardConfig, after, why_skipped
from afm_scale.train.pilot.memory import Guarded, RolledBack
from tests.equivalence import Layout
from tests.ranks import run_ranks

from .game import acts, differing, game, plant, play, position, same_on_all, save, under_every_plan, values

GUARD = "pilot.guard={spike: 20.0, most_skips: 2}"
CONFIG = GuardConfig(spike=3.0, window=10)


def skips(folder: Path) -> list[tuple[int, str, float | None]]:
    return [
        (event["step"], event["player"], event["norm"])
        for event in RunFolder(folder).read_events() if event.get("act") == "skip"
    ]


def test_a_spike_is_so_many_times_the_median_of_the_last_norms() -> None:
    norms = (1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 1.0, 1.0)
    assert why_skipped(CONFIG, norms, 3.0, 0) is None
    assert why_skipped(CONFIG, norms, 3.1, 0) == "the gradient's norm is 3.1 times the usual 1"
    assert why_skipped(CONFIG, norms[:9], 300.0, 0) is None  # too few to know what is usual
    assert why_skipped(GuardConfig(spike=None), norms, 1e9, 0) is None
    assert why_skipped(CONFIG, (0.0,) * 10, 1.0, 0) is None  # a player that begins to learn is not held back for ever
    assert why_skipped(CONFIG, (), math.nan, 9) == why_skipped(CONFIG, (), math.inf, 0) == "the gradient is not finite"


def test_what_is_skipped_does_not_raise_the_bar_and_the_window_slides() -> None:
    memory = Guarded()
    for norm in range(12):
        memory = after(CONFIG, memory, "generator", float(norm), is_made=True)
    assert memory.norms == {"generator": tuple(map(float, range(2, 12)))}
    held = after(CONFIG, memory, "generator", 1e9, is_made=False)
    assert held.norms == memory.norms and held.skips == {"generator": 1}
    assert after(CONFIG, held, "generator", 5.0, is_made=True).skips == {"generator": 0}


@pytest.mark.parametrize("role", [Role.GENERATOR, Role.DISCRIMINATOR])
def test_a_skipped_update_leaves_the_player_its_optimizer_the_average_and_the_scale(tmp_path: Path, role: Role) -> None:
    run = game(tmp_path, GUARD)
    play(run, 3)
    before = values(run)
    plant(run, role, [3], lambda loss: loss * math.nan, rank=0)
    play(run, 4)
    changed = differing(values(run), before)
    of_other = {Role.GENERATOR: "discriminator", Role.DISCRIMINATOR: "generator"}[role]
    assert any(f"{of_other}." in name for name in changed)
    untouched = ("generator.", "average.", "optimizer.generator.", "objective.") if role is Role.GENERATOR else (
        "discriminator.", "optimizer.discriminator.",
    )
    assert not [name for name in changed if name.startswith(untouched)]
    assert skips(tmp_path) == [(4, role.value, None)]
    play(run, 6)
    assert all(torch.isfinite(value).all() for value in values(run).values())
    assert run.state.step == 6


def test_of_two_who_move_at_once_a_spike_holds_back_one_and_what_is_not_finite_both(tmp_path: Path) -> None:
    run = game(tmp_path, GUARD, "objective.update=one_pass")
    play(run, 12)
    before = values(run)
    plant(run, Role.DISCRIMINATOR, [12], lambda loss: loss * 1e6, rank=0)
    play(run, 13)  # what G learns does not depend on the size of D's loss
    changed = differing(values(run), before)
    assert not [name for name in changed if "discriminator" in name]
    assert [name for name in changed if name.startswith("generator.")]
    before = values(run)
    plant(run, Role.DISCRIMINATOR, [13], lambda loss: loss * math.nan, rank=0)
    play(run, 14)
    assert not differing(values(run), before)
    assert [player for _, player, _ in skips(tmp_path)] == ["discriminator", "discriminator", "generator"]


def test_a_spike_is_skipped_like_it(tmp_path: Path) -> None:
    run = game(tmp_path, GUARD)
    play(run, 12)
    plant(run, Role.DISCRIMINATOR, [12], lambda loss: loss * 1e6, rank=0)
    before = values(run)
    play(run, 13)
    assert not [name for name in differing(values(run), before) if "discriminator" in name]
    ((step, player, norm),) = skips(tmp_path)
    assert (step, player) == (13, "discriminator") and norm > 1e3


def test_a_spike_that_lasts_is_none_and_the_run_goes_on(tmp_path: Path) -> None:
    run = game(tmp_path, "pilot.guard={spike: 20.0, lasting: 2, most_skips: 2}")
    plant(run, Role.DISCRIMINATOR, range(12, 20), lambda loss: loss * 1e6, rank=0)
    play(run, 20)
    assert [step for step, *_ in skips(tmp_path)] == [13, 14, 16, 17, 19, 20]
    assert all(torch.isfinite(value).all() for value in values(run).values())


def test_too_many_skips_in_a_row_end_the_run_with_what_to_do(tmp_path: Path) -> None:
    run = game(tmp_path, GUARD)
    plant(run, Role.GENERATOR, [1, 2, 3, 4], lambda loss: loss * math.nan, rank=0)
    with pytest.raises(DivergenceError, match=r"3 updates of the generator in a row .* last at step 4: the gradient"):
        play(run, 6)
    assert len(skips(tmp_path)) == 3


def test_weights_that_have_exploded_are_not_saved(tmp_path: Path) -> None:
    run = game(tmp_path, GUARD)
    play(run, 2)
    save(run)
    norms = run.state.pilot.guard.weights
    assert set(norms) == {"generator", "discriminator", "average"}
    generator = run.state.players[Role.GENERATOR].module.state_dict()
    weights = torch.cat([value.double().flatten() for value in generator.values()])
    assert norms["generator"] == pytest.approx(float(weights.norm()), rel=1e-12)
    play(run, 3)
    save(run)  # they grow a little
    with torch.no_grad():
        for parameter in run.state.players[Role.DISCRIMINATOR].module.parameters():
            parameter.mul_(20)
    with pytest.raises(DivergenceError, match="weights of the discriminator have a norm of .* they were not saved"):
        save(run)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000002", "step_00000003"]


def of_a_rank(folder: Path, layout: Layout) -> tuple[bool, bool, int]:
    """Gradients are spoilt on rank 1 alone, which has data of its own: once each, and then by some samples for good."""
    run = game(folder, GUARD, "pilot.roll_back={}", layout=layout)
    plant(run, Role.GENERATOR, [2], lambda loss: loss * math.nan, rank=1)
    play(run, 3)
    plant(run, Role.DISCRIMINATOR, [3], lambda loss: loss * math.inf, rank=1)
    play(run, 5)
    save(run)
    found = values(run)
    plain = sum(float(value.double().square().sum()) for name, value in found.items() if name.startswith("generator."))
    assert run.state.pilot.guard.weights["generator"] == pytest.approx(plain**0.5, rel=1e-9)
    consumed = position(run)
    plant(run, Role.GENERATOR, range(consumed, consumed + 49), lambda loss: loss * math.nan, rank=1, at=position)
    play(run, 8)
    assert run.state.pilot.roll_backs == (RolledBack(step=8, to=5),)
    assert position(run) == consumed + 2 * 48  # three steps of two turns of eight, twice
    found = values(run)
    return same_on_all(found), all(bool(torch.isfinite(value).all()) for value in found.values()), run.state.step


@under_every_plan
def test_a_gradient_spoilt_on_one_rank_is_skipped_on_all_then_the_run_goes_back_and_all_hold_the_same(
    layout: Layout, tmp_path: Path
) -> None:
    assert run_ranks(2, of_a_rank, tmp_path, layout, timeout=120) == [(True, True, 8)] * 2
    assert skips(tmp_path) == [
        (3, "generator", None), (4, "discriminator", None), *((step, "generator", None) for step in (6, 7, 8))
    ]
    assert acts(tmp_path)[-1] == (8, "roll_back", 5)
