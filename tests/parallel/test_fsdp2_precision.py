"""In which dtype FSDP2 gathers weights, sums gradients over the ranks and keeps what rests; torch's versions differ."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from afm_scale.core.types import Role
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.fsdp2 import FSDP2Plan
from afm_scale.parallel.kinds.fsdp2 import FSDP2Config, gathered_bytes
from afm_scale.parallel.launch import Ranks
from tests.parallel.test_plans import OPTIMIZER
from tests.parallel.test_precision import BF16, FP32, asked, discriminator, generator, weights_of
from tests.ranks import run_ranks


class Sent(NamedTuple):
    kind: str
    dtype: torch.dtype
    bytes: int  # of the whole


class Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Sent] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            whole = max(tensors, key=Tensor.numel)
            self.found.append(Sent(function.name().removeprefix("c10d::").strip("_"), whole.dtype, whole.nbytes))
        return function(*args, **(kwargs or {}))


def plan_of(policy: str) -> FSDP2Plan:
    rank = torch.distributed.get_rank()
    ranks = Ranks(rank, rank, torch.distributed.get_world_size(), torch.device("cpu"))
    return FSDP2Plan(
        ranks, ParallelConfig(plan="fsdp2", device="cpu", precision="bf16", fsdp2=FSDP2Config(policy=policy))
    )


def update_of_a_network_that_was_frozen_at_first(policy: str) -> None:
    """As the generator is, in the discriminator's turn of the first step."""
    plan = plan_of(policy)
    with torch.device("meta"):
        networks = {Role.GENERATOR: generator(2), Role.DISCRIMINATOR: discriminator()}
    players = {role: plan.player(role, net, weights_of(net).items(), OPTIMIZER) for role, net in networks.items()}
    mine, other = players[Role.GENERATOR], players[Role.DISCRIMINATOR]
    with torch.no_grad(), plan.turn_of(other, last=False):
        asked(mine.network)
    for last in (False, True):  # a block that is used twice is reduced once, with the gradients of both microbatches
        with Collectives() as collectives, plan.turn_of(other, last=last):
            plan.backward(other, asked(other.network).sum() + asked(other.network, precise=True).square().sum())
    sums = [sent.dtype for sent in collectives.found if sent.kind == "reduce_scatter_base"]
    assert sums == {"zero2": 3, "full": 5, "whole": 1}[policy] * [FP32]
    plan.step(other, 0)
    for last in (False, True):
        with Collectives() as collectives, plan.turn_of(mine, last=last):
            plan.backward(mine, asked(mine.network).square().mean())
        sums = {sent.dtype for sent in collectives.found if sent.kind == "reduce_scatter_base"}
        assert sums == ({FP32} if last else set())
        if not last:
            gathered = [sent for sent in collectives.found if sent.kind == "allgather_base"]
    if policy == "whole":
        assert [sent.dtype for sent in gathered] == [FP32]
    if policy == "zero2":
        assert [sent.dtype for sent in gathered] == [FP32, BF16, BF16]
        with torch.device("meta"):
            fitting = gathered_bytes(generator(2), FP32, BF16)
        assert fitting <= sum(sent.bytes for sent in gathered) < 1.05 * fitting  # padded to divide by the ranks
    plan.reshard(mine.module)
    assert {parameter.grad.dtype for parameter in mine.module.parameters()} == {FP32}
    plan.step(mine, 0)
    assert {tensor.dtype for tensor in plan.local_tensors(mine.module).values()} == {FP32}
    assert {tensor.dtype for tensor in plan.optimizer_state_dict(mine).values()} == {FP32}


def updates_of_a_network_that_was_frozen_at_first() -> None:
    for policy in ("zero2", "full", "whole"):
        update_of_a_network_that_was_frozen_at_first(policy)


def test_blocks_are_gathered_in_bf16_and_gradients_summed_over_ranks_in_float32() -> None:
    run_ranks(2, updates_of_a_network_that_was_frozen_at_first, timeout=120)


def test_gathered_bytes_count_blocks_in_their_own_dtype() -> None:
    network = generator()
    blocks = sum(parameter.numel() for parameter in network.blocks.parameters())
    others = sum(parameter.numel() for parameter in network.parameters()) - blocks
    assert gathered_bytes(network, FP32, BF16) == 4 * others + 2 * blocks
    assert gathered_bytes(network, FP32) == 4 * (others + blocks)
