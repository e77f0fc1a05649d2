"""FSDP2: parameters, gradients, optimizer and average sharded over the ranks, block by block.

What an update gathers and reduces under each policy are formulas in `kinds/fsdp2.py`, which the tests count:

    full    R L + 1  +  R L     L + 1 reduce-scatters     of L blocks, each used R times: forward + backward
    zero2     L + 1  +  0       L + 1
    whole         1  +  0           1

A discriminator that is asked precisely (`PenaltyConfig`) uses its blocks twice. Under bf16 full and zero2 gather blocks
as such, in half the bytes. A rank then adds up the gradients of a block's uses in bf16, before they are summed over the
ranks in float32; whole gathers float32 and casts for each use, as DDP does.

FSDP2 gathers a block for each use and drops it after each; under zero2 both are switched off, and what is gathered
stays until `reshard` drops it. A step on the shards without that would train on stale weights, without an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.hooks import RemovableHandle

from ..core.network import Network
from .base import BasePlan
from .config import ParallelConfig
from .describe import memory_per_rank
from .kinds.fsdp2 import Policy
from .kinds.kind import ONE_MICROBATCH, Turn
from .launch import Ranks
from .plan import Player
from .precision import block_dtype

_REPLICATE, _SHARD = "replicate", "shard"  # axes of the mesh


class FSDP2Plan(BasePlan):
    def __init__(self, ranks: Ranks, config: ParallelConfig, turn: Turn = ONE_MICROBATCH) -> None:
        super().__init__(ranks, config, turn)
        self._settings = config.fsdp2
        self._block_dtype = block_dtype(config.precision)
        self._mesh = _mesh(self.device.type, self.world_size, config.fsdp2.replicas)
        self._memory = ranks.memory or _smallest_memory(self.device, self.world_size)

    def policy_of(self, module: Network) -> Policy:
        """The policy of a network: the configured one, or what `auto` makes of it."""
        return self._settings.policy_of(
            module, dtype=self.dtype, block_dtype=self._block_dtype, memory=self._memory
        )

    def _lay_out_blocks(self, module: Network) -> None:
        policy = self.policy_of(module)
        for block in module.shardable_blocks() if policy != "whole" else ():
            # Inputs as they are: those of a precise call are float32, and cast the weights, for each use, to that.
            dtypes = self._dtypes(self._block_dtype)
            fully_shard(block, mesh=self._mesh, reshard_after_forward=policy == "full", mp_policy=dtypes)

    def _lay_out_root(self, module: Network) -> nn.Module:
        root = fully_shard(module, mesh=self._mesh, reshard_after_forward=False, mp_policy=self._dtypes(None))
        # Without this every use of a block would drop it in the backward, and the next one gather it again.
        root.set_reshard_after_backward(self.policy_of(module) != "zero2")
        return root

    def _dtypes(self, gathered: torch.dtype | None) -> MixedPrecisionPolicy:
        # Reductions in the dtype of the shards, and said so: what torch does untold differs between its versions.
        return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=self.dtype, cast_forward_inputs=False)

    def _network(self, module: nn.Module) -> nn.Module:
        # While all of it learns. FSDP2 would do this in the first forward, where the generator is frozen, and then
        # forget `reduce_dtype`: gradients would be added up over the ranks in bf16.
        fully_shard.state(module)._lazy_init()
        return module

    def _initialise(self, target: Tensor, full: Tensor) -> None:
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

    def reshard(self, module: nn.Module) -> None:
        # After a forward without a backward the root stays gathered, and its gathered copies are what
        # named_parameters, requires_grad_ and in-place updates would reach: stale weights, without an error.
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    @contextmanager
    def _reducing(self, player: Player, last: bool) -> Iterator[None]:
        player.module.set_requires_gradient_sync(last)
        player.module.set_is_last_backward(last)
        hooks = _reduce_after_last_use(player) if last else []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _sum_over_shards_(self, value: Tensor) -> Tensor:
        group = self._mesh.get_group(_SHARD)  # replicas hold the same gradients: theirs are not added
        if dist.get_world_size(group) > 1:
            dist.all_reduce(value, group=group)
        return value


def _mesh(device_type: str, world_size: int, replicas: int) -> DeviceMesh:
    if replicas == 1:
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=(_SHARD,))
    assert world_size % replicas == 0, (world_size, replicas)  # run.check refuses it
    return init_device_mesh(device_type, (replicas, world_size // replicas), mesh_dim_names=(_REPLICATE, _SHARD))


def _smallest_memory(device: torch.device, world_size: int) -> int:
    """Bytes of the smallest device of all ranks, which have to choose alike; collective."""
    smallest = torch.tensor(memory_per_rank(device, world_size))
    if world_size > 1:
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)


def _reduce_after_last_use(player: Player) -> list[RemovableHandle]:
    """Lets each block that holds the gradients of earlier microbatches reduce once in the coming backward.

    A block's gradients are complete when autograd has added up those of all its uses, but FSDP2 reduces after every use
    that finds some: those of earlier microbatches after the first, the rest after the last. Only blocks that are still
    gathered are looked at: under zero2 those that earlier microbatches of the turn used.
    """
    hooks = []
    learnt = set(player.names)
    learning = {id(parameter) for name, parameter in player.module.named_parameters() if name in learnt}
    for block in player.module.shardable_blocks():
        parameter = next((one for one in block.parameters() if id(one) in learning), None)
        if isinstance(block, FSDPModule) and parameter is not None and not isinstance(parameter, DTensor):
            block.set_requires_gradient_sync(False)
            hooks.append(parameter.register_post_accumulate_grad_hook(partial(_reduce_now, block)))
    return hooks


def _reduce_now(block: FSDPModule, parameter: Tensor) -> None:
    block.set_requires_gradient_sync(True)
