"""The optimizer of a player: torch's AdamW bit for bit, with half of its state where beta1 = 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.core.errors import CheckpointError
from afm_scale.core.schedules import Constant
from afm_scale.parallel import optim
from afm_scale.parallel.optim import AdamW, OptimizerConfig, build_optimizer
from afm_scale.run.build import build_plan, build_state
from afm_scale.run.start import start
from afm_scale.train.hooks.events import EventLog
from tests.equivalence import Layout, config_of, this_rank

SHAPES = ((30, 5), (5,), (0, 4), (3, 2, 2, 2), ())


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype, generator=generator)) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], *, num_steps: int = 7) -> list[nn.Parameter]:
    """Gradients of every size, none for one parameter at one step, and a learning rate that changes."""
    generator = torch.Generator().manual_seed(1)
    for step in range(num_steps):
        for index, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, dtype=weight.dtype, generator=generator) * 10.0 ** (2 - step)
            weight.grad = None if (step, index) == (2, 1) else gradient
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        optimizer.zero_grad()
    return weights


def ours(beta1: float, decay: float, weights: list[nn.Parameter]) -> AdamW:
    config = OptimizerConfig(
        learning_rate=Constant(value=1e-2), betas=(beta1, 0.9), eps=1e-8, weight_decay=decay
    )
    return build_optimizer(weights, config)


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", ["as published", "foreach", "fused"])
def test_it_is_torchs_bit_for_bit(
    kernel: str, dtype: torch.dtype, beta1: float, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU torch's foreach is the same as its loop over parameters, which is what is published; fused is not."""
    named = {} if kernel == "as published" else {kernel: True}
    if kernel == "fused":
        monkeypatch.setattr(optim, "kernel_for", lambda parameters: "fused")  # as on a GPU
    found, wanted = parameters(dtype), parameters(dtype)
    optimizer = ours(beta1, decay, found)
    theirs = torch.optim.AdamW(wanted, lr=1e-2, betas=(beta1, 0.9), eps=1e-8, weight_decay=decay, **named)
    train(optimizer, found)
    train(theirs, wanted)
    for mine, other, before in zip(found, wanted, parameters(dtype), strict=True):
        assert mine.numel() == 0 or not torch.isclose(mine, before).any()
        assert torch.equal(mine, other)
        for name, value in optimizer.state[mine].items():
            assert torch.equal(value, theirs.state[other][name]), name
    assert [int(optimizer.state[weight]["step"]) for weight in found] == [7, 6, 7, 7, 7]


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_optimism_steps_by_the_gradient_and_what_it_changed_by(beta1: float) -> None:
    found, wanted, past = parameters(torch.float64), parameters(torch.float64), {}
    config = OptimizerConfig(learning_rate=Constant(value=1e-2), betas=(beta1, 0.9), optimism=0.7)
    train(build_optimizer(found, config), found)
    plain = ours(beta1, config.weight_decay, wanted)
    step = plain.step

    def step_ahead() -> None:
        for index, weight in enumerate(wanted):
            if weight.grad is not None:
                gradient = weight.grad.clone()
                weight.grad += 0.7 * (gradient - past.get(index, torch.zeros_like(gradient)))
                past[index] = gradient
        step()

    plain.step = step_ahead
    train(plain, wanted)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


def test_optimism_damps_two_players_who_circle_around_each_other() -> None:
    """min over x, max over y of x y, both moving at once: plain steps spiral outwards."""
    lengths = {}
    for optimism in (0.0, 1.0):
        players = [nn.Parameter(torch.full((), 0.01, dtype=torch.float64)) for _ in range(2)]
        config = OptimizerConfig(  # eps so far above gradients that steps are in proportion to them
            learning_rate=Constant(value=0.1), betas=(0.0, 0.9), eps=1.0, weight_decay=0.0, optimism=optimism
        )
        optimizers = [build_optimizer([player], config) for player in players]
        for _ in range(600):
            x, y = (player.detach().clone() for player in players)
            players[0].grad, players[1].grad = y, -x
            for optimizer in optimizers:
                optimizer.step()
        lengths[optimism] = float(sum(player.detach().square() for player in players))
    start = 2 * 0.01**2
    assert lengths[0.0] > 10 * start and lengths[1.0] < start / 10


def test_a_checkpoint_with_a_past_gradient_goes_on_without_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with_it = saved(tmp_path, 0.0, 1, "optimizer.generator.optimism=1")
    without = saved(tmp_path, 0.0, 1)
    left = {name for name in with_it if name not in without}
    assert left == {name for name in with_it if name.endswith(".past_grad")} != set()


def state_bytes(optimizer: AdamW) -> tuple[int, int]:
    """Of the moments, and of the counts."""
    states = [state for states in optimizer.state.values() for state in states.items()]
    sizes = {name: sum(value.nbytes for key, value in states if key == name) for name, _ in states}
    return sum(size for name, size in sizes.items() if name != "step"), sizes["step"]


def test_without_beta1_the_state_is_half_from_the_start_to_the_end() -> None:
    weights = {beta1: parameters(torch.float32) for beta1 in (0.0, 0.9)}
    optimizers = {beta1: ours(beta1, 0.01, weights[beta1]) for beta1 in weights}
    for num_steps in (0, 3):
        (without, counts), (with_it, same_counts) = (
            state_bytes(optimizer) for optimizer in optimizers.values()
        )
        assert 2 * without == with_it > 1000
        assert without == sum(weight.nbytes for weight in weights[0.0])
        assert counts == same_counts == 4 * len(SHAPES)
        for beta1, optimizer in optimizers.items():
            train(optimizer, weights[beta1], num_steps=num_steps or 3)


def saved(folder: Path, beta1: float, steps: int, *settings: str) -> list[torch.Tensor]:
    """The state's tensors after going on in the folder from what lies there, which is saved again."""
    layout = Layout("ddp", 1, 1, settings=(
        f"run.folder={folder}", f"optimizer.generator.betas=[{beta1}, 0.9]", f"loop.steps={steps}", *settings,
    ))
    config, ranks = config_of("flow matching", layout), this_rank(layout)
    plan = build_plan(config, ranks)
    state = build_state(config, ranks, plan)
    manager = CheckpointManager(
        folder / "checkpoints", CheckpointConfig(every_steps=1), rank=0, world_size=1, description={}
    )
    where = start(state, plan, manager, config.run, EventLog(folder / "events.jsonl", enabled=True))
    tensors = state.tensors(plan)
    if where == "new run from scratch":
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.add_(len(name))
        manager.save(steps, tensors, state.scalars() | {"step": steps})
    manager.close()
    return tensors


def test_a_checkpoint_with_a_first_moment_goes_on_without_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with_it = saved(tmp_path, 0.9, steps=1)
    without = saved(tmp_path, 0.0, steps=1)
    assert {name for name in with_it if name not in without} == {name for name in with_it if name.endswith(".exp_avg")}
    assert all(torch.equal(tensor, with_it[name]) for name, tensor in without.items())
    assert any(name.endswith(".exp_avg") for name in with_it)


def test_a_checkpoint_without_a_first_moment_is_refused_where_one_is_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    saved(tmp_path, 0.0, steps=1)
    with pytest.raises(CheckpointError, match="exp_avg is absent in the checkpoint.*another model or optimizer"):
        saved(tmp_path, 0.9, steps=1)
