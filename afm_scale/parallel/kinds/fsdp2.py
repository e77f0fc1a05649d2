"""What FSDP2 may be told, and the arithmetic of its policies: what is gathered how often, and what `auto` chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch

from ...core.errors import ConfigError
from ...core.network import Network
from ...core.ranges import Range
from .kind import Described, PlanKind, Turn, divisors

if TYPE_CHECKING:
    from ..config import ParallelConfig
    from ..launch import Ranks
    from ..plan import ParallelPlan

Policy = Literal["full", "zero2", "whole"]

AUTO_SHARE = 0.1  # of the device's memory that policy auto lets one network's gathered weights take


@dataclass(frozen=True, kw_only=True)
class FSDP2Config(PlanKind):
    """What is gathered when, and how many copies of the shards there are.

    full: every block for each of its uses, dropped after it; least memory.
    zero2: every block once in a turn, kept through its forwards and backwards, however often they use it; gradients,
        optimizer and average stay sharded.
    whole: the network at once, and kept until its turn ends; fewest collectives, for small networks.
    auto: zero2 for networks that repeat their blocks or are small beside the device's memory, else full
        (`chosen_policy`).
    """

    policy: Literal["auto", "full", "zero2", "whole"] = "auto"  # what is gathered when
    # copies of all shards (HSDP), each over as many neighbouring ranks: one per node gathers in it
    replicas: Annotated[int, Range(1, 1_000_000)] = 1

    def build(self, ranks: Ranks, config: ParallelConfig, turn: Turn) -> ParallelPlan:
        from ..fsdp2 import FSDP2Plan

        return FSDP2Plan(ranks, config, turn)

    def check(self, config: ParallelConfig, world_size: int, described: Described) -> None:
        """Ranks are replicas x shards."""
        if world_size % self.replicas:
            raise ConfigError(
                f"parallel.fsdp2.replicas {self.replicas} does not divide the {world_size} rank(s), which are to be "
                f"replicas of as many shards each; use {' or '.join(map(str, divisors(world_size)))}, or a number of "
                f"ranks that {self.replicas} divides"
            )

    def policy_of(
        self, network: Network, *, dtype: torch.dtype, block_dtype: torch.dtype | None, memory: int
    ) -> Policy:
        """The policy of a network: the configured one, or what `auto` makes of it on devices of so many bytes."""
        if self.policy != "auto":
            return self.policy
        return chosen_policy(gathered_bytes(network, dtype, block_dtype), memory, network.repetitions)

    def describe_network(
        self, network: Network, *, dtype: torch.dtype, block_dtype: torch.dtype | None, memory: int
    ) -> dict[str, object]:
        policy = self.policy_of(network, dtype=dtype, block_dtype=block_dtype, memory=memory)
        blocks, uses = len(network.shardable_blocks()), network.repetitions
        forward, backward = gathers(policy, blocks, uses, uses)
        return {
            "policy": policy, "gathers_forward": forward, "gathers_backward": backward,
            "reduce_scatters": reductions(policy, blocks),
        }


def chosen_policy(gathered: int, memory: int, repetitions: int) -> Policy:
    """What `auto` means for a network of `gathered` bytes that uses its blocks so often, on `memory` bytes per rank.

    Repeated blocks cost `full` 2 R gathers where zero2 needs one; a small network gains half its gathers for nothing.
    """
    return "zero2" if repetitions > 1 or gathered <= AUTO_SHARE * memory else "full"


def gathered_bytes(module: Network, dtype: torch.dtype, block_dtype: torch.dtype | None = None) -> int:
    """What the module's parameters take when all are gathered: in `dtype`, those of its blocks in one of their own."""
    in_all = sum(parameter.numel() for parameter in module.parameters())
    in_blocks = sum(parameter.numel() for block in module.shardable_blocks() for parameter in block.parameters())
    return (in_all - in_blocks) * dtype.itemsize + in_blocks * (block_dtype or dtype).itemsize


def gathers(policy: Policy, blocks: int, uses: int, uses_in_backward: int) -> tuple[int, int]:
    """All-gathers of a network in a microbatch's forward and backward, which the tests count in real steps.

    `uses`: how often the forward uses each block; `uses_in_backward`: those of them that pass on a gradient. What lies
    outside of the blocks is gathered once, and kept. Later microbatches find all still gathered, but under full.
    """
    if policy == "whole":
        return 1, 0
    if policy == "zero2":
        return blocks + 1, 0
    return uses * blocks + 1, uses_in_backward * blocks


def reductions(policy: Policy, blocks: int) -> int:
    """Reduce-scatters of a turn of the network that learns, whatever the uses and microbatches are."""
    return 1 if policy == "whole" else blocks + 1
