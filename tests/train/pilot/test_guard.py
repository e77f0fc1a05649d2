"""The guard: an update of a gradient that is not finite, or spikes, leaves everything as it was, on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import DivergenceError
from afm_scale.core.run_folder import RunFolder
from afm_scale.core.types import Role
from afm_scale.train.pilot.guard import GuardConfig, after, why_skipped
from afm_scale.train.pilot.memory import Guarded
from tests.equivalence import Layout
from tests.ranks import run_ranks

from .game import Game, differing, game, play, save, values
from .test_trial import LAYOUTS, _same_on_all

GUARD = "pilot.guard={spike: 20.0, most_skips: 2}"
CONFIG = GuardConfig(spike=3.0, window=10)


def plant(of: Game, role: Role, steps: Sequence[int], spoil: Callable[[Tensor], Tensor], rank: int) -> None:
    """Spoils the loss of a player, and so its whole gradient, at some steps on one rank."""
    backward = of.plan.backward

    def planted(player, loss: Tensor) -> None:  # type: ignore[no-untyped-def]
        hit = player.role is role and of.state.step in steps and of.plan.rank == rank
        backward(player, spoil(loss) if hit else loss)

    of.plan.backward = planted


def skips(folder: Path) -> list[tuple[int, str, float | None]]:
    return [
        (event["step"], event["player"], event["norm"])
        for event in RunFolder(folder).read_events() if event.get("act") == "skip"
    ]


def test_a_spike_is_so_many_times_the_median_of_the_last_norms() -> None:
    norms = (1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 1.0, 1.0)
    assert why_skipped(CONFIG, norms, 3.0) is None
    assert why_skipped(CONFIG, norms, 3.1) == "the gradient's norm is 3.1 times the usual 1"
    assert why_skipped(CONFIG, norms[:9], 300.0) is None  # too few to know what is usual
    assert why_skipped(GuardConfig(spike=None), norms, 1e9) is None
    assert why_skipped(CONFIG, (0.0,) * 10, 1.0) is None  # a player that begins to learn is not held back for ever
    assert why_skipped(CONFIG, (), math.nan) == why_skipped(CONFIG, (), math.inf) == "the gradient is not finite"


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


def test_a_spike_is_skipped_like_it(tmp_path: Path) -> None:
    run = game(tmp_path, GUARD)
    play(run, 12)
    plant(run, Role.DISCRIMINATOR, [12], lambda loss: loss * 1e6, rank=0)
    before = values(run)
    play(run, 13)
    assert not [name for name in differing(values(run), before) if "discriminator" in name]
    ((step, player, norm),) = skips(tmp_path)
    assert (step, player) == (13, "discriminator") and norm > 1e3


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
    """Both players' gradients are spoilt once, on rank 1 alone, which has data of its own."""
    run = game(folder, GUARD, layout=layout)
    plant(run, Role.GENERATOR, [2], lambda loss: loss * math.nan, rank=1)
    play(run, 3)
    plant(run, Role.DISCRIMINATOR, [3], lambda loss: loss * math.inf, rank=1)
    play(run, 5)
    save(run)
    found = values(run)
    plain = sum(float(value.double().square().sum()) for name, value in found.items() if name.startswith("generator."))
    assert run.state.pilot.guard.weights["generator"] == pytest.approx(plain**0.5, rel=1e-9)
    return _same_on_all(found), all(bool(torch.isfinite(value).all()) for value in found.values()), run.state.step


# As of the trials: what DeepSpeed uses of torch is deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor):FutureWarning")
@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_gradient_spoilt_on_one_rank_is_skipped_on_all_and_all_hold_the_same(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    if layout.plan in ("deepspeed", "megatron") and find_spec(layout.plan) is None:
        pytest.skip(f"{layout.plan} is not installed")
    assert run_ranks(2, of_a_rank, tmp_path, layout, timeout=120) == [(True, True, 5)] * 2
    assert skips(tmp_path) == [(3, "generator", None), (4, "discriminator", None)]
