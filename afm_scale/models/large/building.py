"""Builds a module of another program on the meta device, and keeps what it computes for itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..layers import small_normal, xavier_uniform

Pretrained = Callable[[str], Tensor]
"""From the name of a tensor to the one it is to begin with."""


class _EmptyOnMeta(TorchFunctionMode):
    """Layers begin as torch.empty; tables of positions, frequencies and the like are computed, and are kept."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """In the block layers get no memory, and what modules compute for themselves does, on the CPU."""
    with torch.device("cpu"), _EmptyOnMeta():
        yield


def without_values(module: nn.Module) -> nn.Module:
    """The same with every parameter and buffer on the meta device.

    A buffer is a table that the module computed: `starting` begins with those that checkpoints keep, from scratch, and
    `computed_tensors` are the others.
    """
    for part in module.modules():
        part.tables = {}
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.to("meta")))
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.tables[name] = buffer
            setattr(part, name, buffer.to("meta"))
    return module


def starting(module: nn.Module, at_zero: Collection[str], pretrained: Pretrained | None, prefix: str = "") -> None:
    """Gives every module that owns tensors an `initial`, as `core/network.TensorOwner` has it.

    Args:
        at_zero: paths of layers that start at zero.
        pretrained: what all tensors begin with, by their names in the module with the prefix; None: from scratch.
    """
    for path, part in module.named_modules():
        part.initial = partial(_initial, part, path in at_zero, pretrained, f"{prefix}{path}.".removeprefix("."))


def _initial(
    owner: nn.Module, is_zero: bool, pretrained: Pretrained | None, path: str, name: str, generator: torch.Generator
) -> Tensor:
    shape = tuple(getattr(owner, name).shape)
    if pretrained is not None:
        return pretrained(path + name)
    if name in owner.tables:
        return owner.tables[name].clone()
    if is_zero or name == "bias":
        return torch.zeros(shape)
    if "Norm" in type(owner).__name__:
        return torch.ones(shape)
    if isinstance(owner, (nn.Linear, nn.Conv2d, nn.Conv1d, nn.Conv3d)):
        return xavier_uniform(shape, generator)
    return small_normal(shape, generator)


def computed_tensors(module: nn.Module) -> Mapping[str, Tensor]:
    """Of a module `without_values`, buffers that no checkpoint keeps, by name, with the values that it computed."""
    kept, parts = set(module.state_dict()), dict(module.named_modules())
    places = {name: name.rpartition(".") for name, _ in module.named_buffers() if name not in kept}
    return {name: parts[path].tables[last] for name, (path, _, last) in places.items()}


def repeated_blocks(module: nn.Module, class_names: Sequence[str]) -> list[nn.Module]:
    """The modules of these classes that stand in a list, in the order of the module: none of them inside another."""
    return [
        part for holder in module.modules() if isinstance(holder, nn.ModuleList)
        for part in holder if type(part).__name__ in class_names
    ]
