"""A transformer of diffusers as a generator that plans can lay over ranks. Nothing of its class is copied here.

Names of tensors: `transformer.` and then those of diffusers; `second_time.` for the embedding that is added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...core.conditions import Conditions
from ...core.errors import ConfigError
from ..diffusers import block_classes, build_transformer
from .building import computed_tensors, parameters_on_meta, repeated_blocks, starting, without_values
from .config import DiffusersConfig
from .pretrained import Pretrained
from .two_times import both, second_embedder, tell_intervals


class DiffusersGenerator(nn.Module):
    """v(x_s, s, t, prompts) -> [B, C, H, W]: the mean velocity from s to t; where it is told s alone, the velocity."""

    repetitions = 1
    passes = ()

    def __init__(self, config: DiffusersConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        """Raises ConfigError for a class that cannot be trained here, or settings that do not fit it or the samples."""
        super().__init__()
        self._adapter = config.adapter
        config.check_shape(shape)
        with parameters_on_meta():
            transformer = without_values(build_transformer(config.class_name, config.settings))
        self.transformer = transformer
        self.second_time = second_embedder(transformer, self._adapter) if config.times == "gated" else None
        if self.second_time is not None:
            tell_intervals(transformer, self._adapter, self.second_time)
        self._blocks = repeated_blocks(transformer, block_classes(transformer))
        if not self._blocks:
            raise ConfigError(
                f"diffusers says no blocks of class_name {config.class_name!r} ({', '.join(block_classes(transformer))}"
                "), and none can be sharded or recomputed by itself; choose another class"
            )
        self._computed = computed_tensors(self)
        self._begin(config)
        if config.lora is not None:  # after: tensors of the folder begin by the names that they had
            from .lora import add_adapters

            add_adapters(transformer, config.lora)
        _let_all_outputs_take_part(self._blocks[-1])
        for block in self._blocks:
            block.register_forward_hook(_without_views)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Conditions) -> Tensor:
        """x [B, C, H, W], times s and t [B] float32, B conditions of the dtype of x -> [B, C, H, W].

        Both times may be negative: -1 <= s <= t <= 0 stands for the times -s and -t of another path.
        """
        times = s if self.second_time is None else both(s, t)
        out = self._adapter.velocity(self.transformer, x, times, y)
        return out if out._base is None else out.clone()  # a view would lose the hooks that FSDP2 adds to it

    def shardable_blocks(self) -> list[nn.Module]:
        """What the class says are its blocks, in forward order; those of one class are alike."""
        return list(self._blocks)

    def large_linears(self) -> list[nn.Linear]:
        """All linear layers of the blocks but those of the modulation, which have one row for each sample."""
        return [
            part for block in self._blocks for name, part in block.named_modules()
            if isinstance(part, nn.Linear) and not any(one in f"{name}." for one in self._adapter.modulations)
        ]

    def compute_blocks_in(self, dtype: torch.dtype) -> None:
        """By autocast, since these blocks do not cast weights to the dtype of their inputs; norms stay in float32."""
        kept = self._adapter.positions
        for block in self._blocks:
            block.register_forward_pre_hook(
                lambda _, inputs, options: (_cast(inputs, dtype), _cast(options, dtype, kept)), with_kwargs=True
            )
            block.forward = _in_autocast(block.forward, dtype)
            for norm in block.modules():
                if isinstance(norm, nn.RMSNorm):  # which autocast leaves to the dtype of its input
                    norm.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.float32))
                    norm.register_forward_hook(lambda _, inputs, out: _cast(out, dtype))
        for linear in self.large_linears():  # whose forward may be replaced by one in fp8, which autocast knows not
            linear.register_forward_pre_hook(lambda _, inputs: _cast(inputs, dtype))
        self._blocks[-1].register_forward_hook(lambda _, inputs, out: _cast(out, torch.float32))

    def _begin(self, config: DiffusersConfig) -> None:
        """How its tensors start: as in the folder of weights, the second time embedding as a copy of the first."""
        adapter, read = self._adapter, None
        if config.weights is not None:
            if config.lora is not None:
                config.lora.on(config.weights)
            shapes = {name: tuple(value.shape) for name, value in self.transformer.state_dict().items()}
            read = Pretrained(config.weights, shapes).read
        paths = [path for path, _ in self.transformer.named_modules()]
        modulations = [path for path in paths if any(one in f"{path}." for one in adapter.modulations)]
        starting(self.transformer, {*modulations, adapter.last}, read)
        if self.second_time is not None:
            *_, last = [name for name, part in self.second_time.named_modules() if isinstance(part, nn.Linear)]
            starting(self.second_time, {last}, read, f"{adapter.time_embedder}.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiffusersGenerator:
        """As of nn.Module; and what it computed when it was built, and no checkpoint keeps, keeps its values."""
        super()._apply(fn, recurse)
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                if name in self._computed and not buffer.is_meta:
                    buffer.copy_(self._computed[name])
        return self


def _cast(values: Any, dtype: torch.dtype, kept: tuple[str, ...] = ()) -> Any:
    """Real floating numbers to a dtype, wherever they are in the arguments of a call but those named in `kept`."""
    if kept:
        return {name: value if name in kept else _cast(value, dtype) for name, value in values.items()}
    return tree_map_only(Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, values)


def _in_autocast(forward: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    def lowered(device: torch.device) -> AbstractContextManager[None]:
        # Without its cache: weights that were cast while no gradient was taken would have none afterwards.
        return torch.autocast(device.type, dtype=dtype, cache_enabled=False)

    @wraps(forward)
    def choose(*inputs: Any, **options: Any) -> Any:
        given = next(value for value in (*inputs, *options.values()) if isinstance(value, Tensor))
        with lowered(given.device):
            return forward(*inputs, **options)

    return choose


class _TakePart(torch.autograd.Function):
    """Its inputs, whose gradients are zero, and not missing, where one is not used."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in values)  # a view would lose the hooks that FSDP2 adds to it

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients  # those that are missing were made zeros


def _without_views(_: nn.Module, inputs: Any, out: Any) -> Any:
    """What a block gives, parts of a larger tensor copied: a view would lose the hooks that FSDP2 adds to it."""
    return tree_map_only(Tensor, lambda value: value if value._base is None else value.clone(), out)


def _let_all_outputs_take_part(block: nn.Module) -> None:
    """The last block's text is thrown away, and DDP waits for the gradient of every weight.

    A weight without one would also escape the decay of AdamW under plans that do not wait.
    """

    def hook(_: nn.Module, inputs: Any, out: Any) -> Any:
        return _TakePart.apply(*out) if isinstance(out, tuple) and all(isinstance(one, Tensor) for one in out) else out

    block.register_forward_hook(hook)
