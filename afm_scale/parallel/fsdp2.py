"""FSDP2: parameters, gradients, optimizer and average sharded over the ranks, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .launch import Ranks
from .plan import ParallelConfig, Player
from .replicated import ReplicatedPlan


class FSDP2Plan(ReplicatedPlan):
    def __init__(self, ranks: Ranks, config: ParallelConfig) -> None:
        super().__init__(ranks, config)
        self._by_block = config.fsdp2.policy == "full"
        self._mesh = init_device_mesh(self.device.type, (self.world_size,))

    def _lay_out(self, module: nn.Module) -> nn.Module:
        # Blocks first: the root then takes only what is left (embedders, final layer), or everything.
        for block in module.shardable_blocks() if self._by_block else ():
            fully_shard(block, mesh=self._mesh, reshard_after_forward=True)
        return fully_shard(module, mesh=self._mesh, reshard_after_forward=False)

    def _fill(self, target: Tensor, full: Tensor) -> None:
        if isinstance(target, DTensor):
            full = full.to(target.device, target.dtype)
            # src_data_rank=None: every rank has the full tensor, nothing needs to be sent.
            sharded = distribute_tensor(full, self._mesh, target.placements, src_data_rank=None)
            target.to_local().copy_(sharded.to_local())
        else:
            target.copy_(full)

    def _like(self, parameter: nn.Parameter, local: Tensor) -> Tensor:
        if local.ndim == 0:  # the step count
            return local
        return DTensor.from_local(
            local, parameter.device_mesh, parameter.placements, run_check=False,
            shape=parameter.shape, stride=parameter.stride(),
        )

    def rest(self, module: nn.Module) -> None:
        # After a forward without a backward the root stays gathered, and its gathered copies are what
        # named_parameters, requires_grad_ and in-place updates would reach: stale weights, without an error.
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    @contextmanager
    def _reducing(self, player: Player, last: bool) -> Iterator[None]:
        player.module.set_requires_gradient_sync(last)
        player.module.set_is_last_backward(last)
        yield

    def _sum_over_shards_(self, value: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(value)
        return value
