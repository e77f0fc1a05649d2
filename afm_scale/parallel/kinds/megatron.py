"""What tensor parallelism may be told, and what it demands of networks and ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch

from ...core.errors import ConfigError
from ...core.network import Network
from ...core.packages import require
from ...core.ranges import Range
from .kind import Described, PlanKind, Turn, divisors

if TYPE_CHECKING:
    from ..config import ParallelConfig
    from ..launch import Ranks
    from ..plan import ParallelPlan

SUMS_OF_A_USE = 2  # of activations over the group, in a block's forward; as many in its backward

# While it is imported, of parts that are not used here: its optimizers, its inference, and decorators of its own.
_MEGATRON_WARNS_OF = (
    "Transformer Engine and Apex are not installed", "The following imports from `dynamic_context.py`",
    "`torch.jit.script",
)


@dataclass(frozen=True, kw_only=True)
class MegatronConfig(PlanKind):
    """Tensor parallelism: `tensor` neighbouring ranks share every block's work, and see the same samples."""

    tensor: Annotated[int, Range(1, 10_000)] = 2  # neighbouring ranks that share every block's work; 1: none

    @property
    def no_forward_derivative(self) -> str | None:
        return "the layers of parallel.plan 'megatron' have none; set parallel.plan to ddp or fsdp2"

    def check_packages(self) -> None:
        require("megatron.core", "parallel.plan 'megatron'", "megatron")

    def build(self, ranks: Ranks, config: ParallelConfig, turn: Turn) -> ParallelPlan:
        with warnings.catch_warnings():
            for about in _MEGATRON_WARNS_OF:
                warnings.filterwarnings("ignore", message=about)
            from ..megatron import MegatronPlan

        return MegatronPlan(ranks, config, turn)

    def data_ranks(self, world_size: int) -> int:
        return world_size // self.tensor

    def environment(self, config: ParallelConfig) -> Mapping[str, str]:
        # Reductions then begin before the products that are to hide them. Compiled blocks have none of these.
        return {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if config.compile is False else {}

    def check(self, config: ParallelConfig, world_size: int, described: Described) -> None:
        """Ranks are shares of the batch x `tensor`, which also divides every network's heads."""
        setting = f"parallel.megatron.tensor {self.tensor}"
        if world_size % self.tensor:
            raise ConfigError(
                f"{setting} does not divide the {world_size} rank(s), of which so many neighbours each are to share "
                f"their work; use {' or '.join(map(str, divisors(world_size)))}, or a number of ranks that "
                f"{self.tensor} divides"
            )
        if config.precision == "fp8":
            raise ConfigError(
                "parallel.precision fp8 is not for parallel.plan 'megatron', whose layers multiply by themselves; set "
                "parallel.precision=bf16"
            )
        for network in described.networks:
            if network.num_heads is None:
                raise ConfigError(
                    f"parallel.plan 'megatron' shares the work of blocks, but {network.setting} of kind "
                    f"{network.kind!r} has none; set parallel.plan=ddp"
                )
            if not network.can_be_shared:
                raise ConfigError(
                    f"parallel.plan 'megatron' shares the work of blocks, but those of {network.setting}, of kind "
                    f"{network.kind!r}, are another program's and do not say how; set parallel.plan=fsdp2"
                )
            if network.num_heads % self.tensor:
                raise ConfigError(
                    f"{setting} does not divide {network.setting}.num_heads {network.num_heads}, of which every rank "
                    f"is to have as many; use a number of heads that {self.tensor} divides, or another "
                    "parallel.megatron.tensor"
                )

    def describe_network(
        self, network: Network, *, dtype: torch.dtype, block_dtype: torch.dtype | None, memory: int
    ) -> dict[str, object]:
        sums = SUMS_OF_A_USE * len(network.shardable_blocks()) * network.repetitions if self.tensor > 1 else 0
        return {"tensor": self.tensor, "sums_forward": sums, "sums_backward": sums}
