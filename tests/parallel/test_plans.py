"""What every plan promises, for whole copies and for shards; that all train alike is test_parallel_equivalence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from afm_scale.core.schedules import Piecewise
from afm_scale.core.types import Role
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.layers import initial_weights
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.ddp import DDPPlan
from afm_scale.parallel.fsdp2 import FSDP2Plan
from afm_scale.parallel.kinds.fsdp2 import FSDP2Config
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.optim import OptimizerConfig
from afm_scale.parallel.plan import ParallelPlan, Player
from tests.ranks import run_ranks

KINDS = {
    "ddp": ParallelConfig(plan="ddp", device="cpu", precision="fp64"),
    **{
        policy: ParallelConfig(plan="fsdp2", device="cpu", precision="fp64", fsdp2=FSDP2Config(policy=policy))
        for policy in ("full", "zero2", "whole")
    },
}
PLANS = {"ddp": DDPPlan, "fsdp2": FSDP2Plan}
DEPTH, REPETITIONS = 2, 2
OPTIMIZER = OptimizerConfig(learning_rate=Piecewise(points=((0, 1.0), (10, 2.0))), weight_decay=0.0, max_grad_norm=0.01)


def plan_of(kind: str) -> ParallelPlan:
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    return PLANS[KINDS[kind].plan](ranks, KINDS[kind])


def network() -> DiTGenerator:
    config = GeneratorConfig(
        patch_size=2, hidden_size=8, depth=DEPTH, num_heads=2, times="none", repetitions=REPETITIONS
    )
    with torch.device("meta"):
        return DiTGenerator(config, (1, 4, 4), 3)


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """No tensor is zero, so that every one has a gradient."""
    return {name: value.double() + 0.01 * (1 + seed) for name, value in initial_weights(network(), seed)}


def player_of(plan: ParallelPlan, role: Role = Role.GENERATOR, seed: int = 0) -> Player:
    return plan.player(role, network(), weights(seed).items(), OPTIMIZER)


def loss_of(player: Player, x: torch.Tensor) -> torch.Tensor:
    time = torch.ones(len(x))
    return player.network(x, time, time, torch.arange(len(x)) % 3).square().mean()


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()).clone()
        for name, tensor in tensors.items()
    }


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def keeps_its_promises(kind: str) -> None:
    """All in one process group, since starting one takes longer than all of this."""
    plan = plan_of(kind)
    x = torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine = x[plan.rank :: plan.world_size]

    # Networks hold what they were given, under the names of the unsharded network.
    player, other = player_of(plan), player_of(plan, Role.DISCRIMINATOR, seed=1)
    average = plan.frozen(network(), weights().items())
    assert_equal(whole(plan.state_dict(player.module)), weights())
    assert_equal(whole(plan.state_dict(other.module)), weights(1))
    assert_equal(whole(plan.state_dict(average)), weights())
    assert not any(parameter.requires_grad for parameter in average.parameters())

    # The optimizer's state can be listed before the first step; its names are those of the parameters.
    names = [name for name, _ in network().named_parameters()]
    states = whole(plan.optimizer_state_dict(player))
    assert set(states) == {f"{name}.{key}" for name in names for key in ("step", "exp_avg_sq")}
    assert all(states[f"{name}.exp_avg_sq"].shape == weights()[name].shape for name in names)
    assert not any(state.any() for state in states.values())

    # Only the mover's weights require grad, also after forwards without a backward.
    for mover, still in ((player, other), (other, player)):
        with torch.no_grad():
            before = loss_of(player, mine), loss_of(other, mine)
        with plan.turn_of(mover, last=True):
            assert all(parameter.requires_grad for parameter in mover.module.parameters())
            assert not any(parameter.requires_grad for parameter in still.module.parameters())

    # Shards share storage with the network, and a network whose weights were written computes with them.
    for part in plan.local_tensors(player.module).values():
        part.mul_(2)
    assert_equal(whole(plan.state_dict(player.module)), {name: 2 * value for name, value in weights().items()})
    with torch.no_grad():
        assert not torch.isclose(loss_of(player, mine), before[0])
        plan.initialise(player.module, weights().items())
        assert torch.equal(loss_of(player, mine), before[0])
        assert torch.equal(loss_of(other, mine), before[1])
    with pytest.raises(AssertionError, match="no weights were given"):
        plan.initialise(player.module, list(weights().items())[1:])

    # A step: the mean gradient of all ranks, clipped, by the learning rate of the step; then no gradient is left.
    with plan.turn_of(player, last=True):
        plan.backward(player, loss_of(player, mine))
    norm = plan.step(player, 5)
    alone = network().to(torch.float64).to_empty(device="cpu")
    alone.load_state_dict(weights())
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1.5, betas=(0.0, 0.9), eps=1e-8, weight_decay=0.0)
    time, labels = torch.ones(8), torch.cat([(torch.arange(8 // plan.world_size) % 3)] * plan.world_size)
    shuffled = torch.cat([x[rank :: plan.world_size] for rank in range(plan.world_size)])
    alone(shuffled, time, time, labels).square().mean().backward()
    wanted_norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.01)
    optimizer.step()
    torch.testing.assert_close(norm, wanted_norm, rtol=1e-10, atol=0)
    assert wanted_norm > 0.02  # so it was clipped
    moved = whole(plan.state_dict(player.module))
    for name, parameter in alone.named_parameters():
        # A gradient of rounding noise alone moves its weight in either direction, by up to the learning rate.
        if parameter.grad.abs().max() > 1e-9 and "attn.qkv.bias" not in name:
            torch.testing.assert_close(moved[name], parameter.detach(), rtol=1e-6, atol=1e-6)
    assert all(parameter.grad is None for parameter in player.module.parameters())
    assert all(state == 1 for name, state in plan.optimizer_state_dict(player).items() if name.endswith(".step"))

    # Means over the ranks.
    value = torch.tensor([1.0, plan.rank])
    assert plan.mean_(value) is value
    assert value.tolist() == [1.0, (plan.world_size - 1) / 2]


@pytest.mark.parametrize(
    ("kind", "world_size"), [("ddp", 1), ("zero2", 1), ("ddp", 2), ("full", 2), ("zero2", 2), ("whole", 2)]
)
def test_a_plan_keeps_its_promises(kind: str, world_size: int) -> None:
    run_ranks(world_size, keeps_its_promises, kind, timeout=120)


def test_shards_of_two_ranks_are_halves() -> None:
    sizes = run_ranks(2, sizes_of_shards)
    in_all = sum(value.numel() for value in weights().values()) - weights()["pos_embed"].numel()
    assert sum(sizes) == in_all
    assert max(sizes) < 0.6 * in_all


def sizes_of_shards() -> int:
    plan = plan_of("zero2")
    module = player_of(plan).module
    return sum(part.numel() for name, part in plan.local_tensors(module).items() if name != "pos_embed")


class CountCollectives(TorchDispatchMode):
    """Counts the collectives of FSDP2 by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function.name().removeprefix("c10d::").strip("_")
            self.found[name] = self.found.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def collectives_of_an_update() -> dict[str, dict[str, int]]:
    plan = plan_of("full")
    player = player_of(plan)
    x, counts = torch.ones(2, 1, 4, 4, dtype=torch.float64), {}
    for name, last in (("first", True), ("one of two", False), ("two of two", True)):
        with CountCollectives() as counter, plan.turn_of(player, last=last):
            plan.backward(player, loss_of(player, x))
        counts[name] = counter.found
        if last:
            plan.step(player, 0)
    return counts


def test_a_block_used_repeatedly_is_gathered_for_each_use_and_reduced_once() -> None:
    """What the plan costs: with every block dropped after its use, R L + 1 gathers forward and R L backward."""
    for counts in run_ranks(2, collectives_of_an_update):
        gathers, reductions = "allgather_base", "reduce_scatter_base"
        assert counts["first"] == {gathers: 2 * REPETITIONS * DEPTH + 1, reductions: DEPTH + 1}, counts
        assert reductions not in counts["one of two"], counts
