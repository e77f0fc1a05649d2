"""Tensor parallelism with Megatron-LM's layers (arXiv 1909.08053), and data parallelism over the other ranks.

`tensor` neighbouring ranks see the same samples and share every block: each has some attention heads and some of the
MLP's hidden units. A use of a block sums activations over them twice forward and twice backward. All else (embedders,
modulation, final layer) is whole on every rank and computes the same there; networks that are frozen, the average among
them, lie as those that learn.

Megatron's global state (`parallel_state`, its random states) is not used: layers are given their group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    linear_with_grad_accumulation_and_async_allreduce,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from ..core.errors import ConfigError
from ..core.network import Network, Shared
from .config import ParallelConfig
from .ddp import DDPPlan
from .kinds.kind import ONE_MICROBATCH, Turn
from .launch import Ranks
from .plan import Admits, Player, Weights


@dataclass(frozen=True)
class Slice:
    """Which part of a tensor each of several ranks has: of each of `stacked` equal parts along an axis, its share."""

    axis: int
    stacked: int

    def part(self, whole: Tensor, rank: int, num_ranks: int) -> Tensor:
        shares = whole.unflatten(self.axis, (self.stacked, num_ranks, -1))
        return shares.select(self.axis + 1, rank).flatten(self.axis, self.axis + 1)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        stacks = [part.unflatten(self.axis, (self.stacked, -1)) for part in parts]
        return torch.stack(stacks, dim=self.axis + 1).flatten(self.axis, self.axis + 2)


@dataclass(frozen=True)
class _Layout:
    """A network's parameters, by name: how they are sliced, and those that see only a rank's part of the work."""

    slices: Mapping[str, Slice]
    partials: frozenset[str]


class MegatronPlan(DDPPlan):
    """Gradients are averaged by DDP over the ranks that hold the same parts of the networks."""

    def __init__(self, ranks: Ranks, config: ParallelConfig, turn: Turn = ONE_MICROBATCH) -> None:
        super().__init__(ranks, config, turn)
        self._parts = config.megatron.tensor
        assert self.world_size % self._parts == 0, (self.world_size, self._parts)  # run.check refuses it
        self.num_data_ranks = self.world_size // self._parts
        self.data_rank, self._part = divmod(self.rank, self._parts)
        mesh = init_device_mesh(
            self.device.type, (self.num_data_ranks, self._parts), mesh_dim_names=("data", "tensor")
        )
        self._data_group, self._tensor_group = mesh.get_group("data"), mesh.get_group("tensor")
        self._layouts: WeakKeyDictionary[nn.Module, _Layout] = WeakKeyDictionary()
        # Selective recomputation keeps results of matrix products, which Megatron's reduction overwrites.
        self._keeps_products = config.recompute.kind == "selective"
        # It would ask for a variable that `launch` sets, in the middle of what is compiled; a CPU does not need it.
        linear_with_grad_accumulation_and_async_allreduce.warned = True

    def step(self, player: Player, step: int, admits: Admits | None = None) -> Tensor:
        self._complete_gradients(player)
        return super().step(player, step, admits)

    @torch.no_grad()
    def initialise(self, module: nn.Module, weights: Weights, still: Collection[str] = ()) -> None:
        shards, slices = self.local_tensors(module), self._layouts[module].slices
        for name, whole in weights:
            shards.pop(name).copy_(self._part_of(slices.get(name), whole))
        missing = shards.keys() - set(still)
        assert not missing, f"no weights were given for {sorted(missing)}"

    def local_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return super().state_dict(module)

    def state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """Collective: what is sliced is gathered, into the host's memory."""
        slices = self._layouts[module].slices
        return {name: self._gathered(slices.get(name), shard) for name, shard in self.local_tensors(module).items()}

    @torch.no_grad()
    def load_state_dict(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        shards = self.local_tensors(module)
        for name, where in self._layouts[module].slices.items():
            shards[name].copy_(self._part_of(where, tensors[name]))

    def optimizer_state_dict(self, player: Player) -> dict[str, Tensor]:
        """Collective, as `state_dict`."""
        shards = super().optimizer_state_dict(player)
        return {
            name: self._gathered(self._slice_of_state(player, name, shard), shard) for name, shard in shards.items()
        }

    @torch.no_grad()
    def load_optimizer_state_dict(self, player: Player, tensors: Mapping[str, Tensor]) -> None:
        for name, shard in super().optimizer_state_dict(player).items():
            where = self._slice_of_state(player, name, shard)
            if where is not None:
                shard.copy_(self._part_of(where, tensors[name]))

    def _lay_out_blocks(self, module: Network) -> None:
        blocks, prefixes = module.shardable_blocks(), {part: name for name, part in module.named_modules()}
        if not blocks:
            raise ConfigError(
                f"parallel.plan 'megatron' shares the work of blocks, but a {type(module).__name__} has none; "
                "use parallel.plan=ddp"
            )
        slices: dict[str, Slice] = {}
        partials: set[str] = set()
        for block in blocks:
            for shared in self._shared_of(block, module):
                prefix = f"{prefixes[shared.owner]}.{shared.name}."
                if shared.kind == "partial":
                    kept = shared.owner.get_submodule(shared.name)
                    partials |= {prefix + name for name, _ in kept.named_parameters()}
                else:
                    slices |= {prefix + name: piece for name, piece in self._replace(shared).items()}
        self._layouts[module] = _Layout(slices if self._parts > 1 else {}, frozenset(partials))

    def _shared_of(self, block: nn.Module, module: nn.Module) -> list[Shared]:
        try:
            return block.share(self._parts, partial(copy_to_tensor_model_parallel_region, group=self._tensor_group))
        except ConfigError as error:
            raise ConfigError(
                f"parallel.megatron.tensor {self._parts} does not suit a {type(module).__name__}: {error}; "
                "choose a divisor of its number of heads"
            ) from error

    def _replace(self, shared: Shared) -> dict[str, Slice]:
        """Puts Megatron's layer in the place of a linear one; how its parameters are sliced, by name."""
        linear = shared.owner.get_submodule(shared.name)
        config = ModelParallelConfig(
            tensor_model_parallel_size=self._parts, params_dtype=self.dtype, use_cpu_initialization=True,
            perform_initialization=False,
        )
        options: dict[str, Any] = dict(
            config=config, init_method=None, bias=linear.bias is not None, tp_group=self._tensor_group,
        )
        with torch.device("meta"):
            layer: _Column | _Row
            if shared.kind == "column":
                layer = _Column(linear.in_features, linear.out_features, gather_output=False, **options)
                # Compiled, gradients are summed by a node of their own: torch.compile takes no reduction that overlaps.
                layer.allreduce_dgrad = layer.allreduce_dgrad and not self._compile
                slices = {name: Slice(0, shared.stacked) for name, _ in layer.named_parameters()}
            else:
                layer = _Row(
                    linear.in_features, linear.out_features, input_is_parallel=True, skip_bias_add=True, **options
                )
                layer.keeps_product = self._keeps_products
                slices = {"weight": Slice(1, 1)}
        layer.initial = linear.initial  # which goes on knowing the whole shapes
        setattr(shared.owner, shared.name, layer)
        return slices

    def _complete_gradients(self, player: Player) -> None:
        """Over the ranks that share blocks: sums the gradients of what is partial, and averages those of the rest.

        All but the former would be the same without it on every such rank, if all kernels summed in a fixed order; on
        a GPU some do not, and what is whole on every rank would slowly drift apart.
        """
        layout, sent = self._layouts[player.module], []
        for name, parameter in player.module.named_parameters():
            if parameter.grad is not None and name not in layout.slices and self._parts > 1:
                if name not in layout.partials:
                    parameter.grad /= self._parts
                sent.append(dist.all_reduce(parameter.grad, group=self._tensor_group, async_op=True))
        for work in sent:
            work.wait()

    def _whole_square(self, player: Player, squares: Tensor) -> Tensor:
        if self._parts == 1:
            return squares.sum()
        (group,) = player.optimizer.param_groups
        names = [
            name for (name, _), shard in zip(player.module.named_parameters(), group["params"], strict=True)
            if shard.grad is not None
        ]
        slices, of_name = self._layouts[player.module].slices, list(zip(names, squares.unbind(), strict=True))
        sliced = torch.stack([square for name, square in of_name if name in slices]).sum()
        whole = torch.stack([square for name, square in of_name if name not in slices]).sum()
        dist.all_reduce(sliced, group=self._tensor_group)
        return sliced + whole

    def _part_of(self, where: Slice | None, whole: Tensor) -> Tensor:
        return whole if where is None else where.part(whole, self._part, self._parts)

    def _gathered(self, where: Slice | None, shard: Tensor) -> Tensor:
        if where is None:
            return shard
        parts = [torch.empty_like(shard) for _ in range(self._parts)]
        dist.all_gather(parts, shard, group=self._tensor_group)
        return where.join(parts).cpu()

    def _slice_of_state(self, player: Player, name: str, shard: Tensor) -> Slice | None:
        """How an optimizer's tensor '<parameter>.<state>' is sliced; a step count, [], belongs to all."""
        return None if shard.ndim == 0 else self._layouts[player.module].slices.get(name.rpartition(".")[0])


class _Layer(nn.Module):
    """What both of Megatron's layers need here: nothing but parameters in the state, and the dtype of the input."""

    initial: Callable[[str, torch.Generator], Tensor]

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def _forward_impl(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        return super()._forward_impl(
            input, weight.to(input.dtype), bias=None if bias is None else bias.to(input.dtype), **options
        )


class _Column(_Layer, ColumnParallelLinear):
    """[B, N, inputs] -> this rank's outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _Row(_Layer, RowParallelLinear):
    """This rank's inputs -> [B, N, outputs], summed over the ranks."""

    keeps_product = False

    def forward(self, x: Tensor) -> Tensor:
        out, bias = super().forward(x)
        return out if bias is None else out + bias.to(out.dtype)

    def _forward_impl(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        product = super()._forward_impl(input, weight, bias, **options)
        return product.clone() if self.keeps_product else product
