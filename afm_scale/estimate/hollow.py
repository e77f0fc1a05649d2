"""Real code on real tensors in which nothing is computed: every operation gives memory of the right size, unwritten.

A process asks the system for memory and gets addresses; memory itself comes with the first write. So a training step
whose kernels are left out takes next to none, whatever its tensors would hold, and everything around the kernels runs
as it always does: autograd, recomputation, hooks, DDP's reducer in C++, FSDP2, ZeRO, Megatron's layers. Tensors on the
meta device would not do (those parts want a device), nor would FakeTensorMode (a subclass, which DDP's reducer and
ZeRO's flat buffers cannot hold).

Shapes come from torch's meta kernels, once for each operation with the same shapes. What is read back from a tensor is
made up (`_made_up`): numbers are 1, truths are false, and code that branches on them takes the ordinary way. Whole
numbers that the program itself gave, such as the ranks of a mesh, are computed with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

Operation = torch._ops.OpOverload
Observer = Callable[[Operation, tuple, dict, Any, int | None], None]
"""Told of every operation that is not a view, and of the names that code gives to its parts for a profiler: what was
asked of what, the output, and a number that equal ones share, None for those that have none."""

_ATEN = torch.ops.aten
_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")
_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_COPYING = {torch.ops.c10d._allgather_base_.default, torch.ops.c10d._reduce_scatter_base_.default}
# They change what a tensor is of, not what it holds.
_METADATA = {
    _ATEN.set_.source_Tensor, _ATEN.set_.source_Storage, _ATEN.set_.source_Storage_storage_offset,
    _ATEN.resize_.default, _ATEN.as_strided_.default, _ATEN.squeeze_.dim, _ATEN.unsqueeze_.default, _ATEN.t_.default,
    _ATEN.transpose_.default,
    _ATEN.detach_.default,
}


_WRAPPERS = tuple(str(Path(torch.__file__).parent / name) for name in ("_dynamo", "_compile.py", "utils"))
_HOLLOW = "is_hollow"  # an attribute of the storages that nobody wrote
_ONE = 2  # holders of a storage that one tensor has: that, and the object that Python looks through


class _Shape(NamedTuple):
    """What stands for a tensor in a key, and what its meta tensor is made from."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Hollow(TorchDispatchMode):
    """While it is on, operations on CPU tensors allocate their results and compute nothing; those on meta tensors are
    left alone. Collectives are handed on: the process group has to be one that moves nothing."""

    def __init__(self, *observers: Observer) -> None:
        super().__init__()
        self._observers = observers
        self._known: dict[Any, tuple[int, Any]] = {}  # by what was asked: a number, and the shapes that come out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would wrap what is called for each operation, and nothing is compiled here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if not _PLAIN.issuperset(types):
            if any(issubclass(kind, FakeTensor) for kind in types):  # by which DTensor finds out how to shard
                return func(*args, **kwargs)
            return NotImplemented  # a DTensor asks again, for each of its parts
        kind = _kind_of(func)
        if kind == "view" or kind == "as it is":
            return func(*args, **kwargs)
        first = _first_tensor(args)
        if _is_meta(first, kwargs) or (kind in ("result", "read") and _is_given(first)):
            return func(*args, **kwargs)
        key = None
        if kind == "name":
            out = func(*args, **kwargs)
        elif kind == "collective":
            out = _sent(func, args, kwargs)
        elif kind == "read":
            out = _made_up(args[0])
        elif kind == "write":
            out = _written(func, args, kwargs)
        elif kind == "gather copy":  # of FSDP2: its input is a part of its output
            _, whole, _, count, rank, *_ = args
            out = (whole.narrow(0, count * rank, count), whole)
        elif func is _ATEN.add.Tensor and _is_of_the_engine(args):
            out = args[0]
        else:
            described = (func, _frozen(args), _frozen(kwargs))
            known = self._known.get(described)
            if known is None:
                shapes = _shapes_of(func(*_on_meta(args), **_on_meta(kwargs) | _device(kwargs)))
                known = self._known[described] = len(self._known), shapes
            key, shapes = known
            out = _allocated(shapes)
        for observer in self._observers:
            observer(func, args, kwargs, out, key)
        return out


@cache
def _kind_of(func: Operation) -> str:
    if func.namespace in _COLLECTIVES:
        return "collective"
    if func in _METADATA:
        return "as it is"
    if func.namespace == "profiler":
        return "name"
    if func is _ATEN._local_scalar_dense.default or func is _ATEN.is_nonzero.default or func is _ATEN.equal.default:
        return "read"
    if func.name().startswith("fsdp::all_gather_copy_in"):
        return "gather copy"
    schema = func._schema
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments):
        return "write"
    if any(result.alias_info is not None for result in schema.returns):
        return "view"
    return "result"


def _is_of_the_engine(args: tuple) -> bool:
    """Whether autograd adds up two gradients of one tensor: it does so in place where nobody else has the first, but
    not while any dispatch mode is on."""
    first, second = args[:2]
    if torch.is_grad_enabled() or torch._C._current_graph_task_id() == -1 or not isinstance(second, Tensor):
        return False
    if first.dtype != second.dtype or first.shape != second.shape or _storages_holders(first) > _ONE:
        return False
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_WRAPPERS):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


def _storages_holders(tensor: Tensor) -> int:
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def _is_given(first: Tensor | None) -> bool:
    """Whether an operation is on whole numbers that the program gave, ranks of a mesh for one: it needs the answer."""
    return first is not None and not first.is_floating_point() and _HOLLOW not in vars(first.untyped_storage())


def _is_meta(first: Tensor | None, kwargs: dict) -> bool:
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device).type == "meta"
    return first is not None and first.is_meta


def _first_tensor(values: Any) -> Tensor | None:
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (list, tuple)) and (found := _first_tensor(value)) is not None:
            return found
    return None


def _frozen(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value.shape, value.stride(), value.dtype
    if kind is tuple or kind is list:
        return tuple([_frozen(item) for item in value])
    if kind is dict:
        return tuple([(name, _frozen(item)) for name, item in value.items()])
    return (kind, value) if kind in (bool, int, float) else value


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_on_meta, value))
    if isinstance(value, dict):
        return {name: _on_meta(item) for name, item in value.items()}
    return None if isinstance(value, torch.Generator) else value


def _device(kwargs: dict) -> dict:
    return {"device": torch.device("meta")} if "device" in kwargs else {}


def _shapes_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_shapes_of, value))
    return value


def _allocated(value: Any) -> Any:
    if isinstance(value, _Shape):
        tensor = torch.empty_strided(value.size, value.stride, dtype=value.dtype)
        vars(tensor.untyped_storage())[_HOLLOW] = True
        return tensor
    if isinstance(value, tuple):
        return tuple(map(_allocated, value))
    return value


def _sent(func: Operation, args: tuple, kwargs: dict) -> Any:
    """The fake group copies this rank's part to the place of every other, which takes memory and time: of gathers and
    reductions into one tensor it is given nothing to copy."""
    if func not in _COPYING or _HOLLOW not in vars(args[0].untyped_storage()):
        return func(*args, **kwargs)
    target, _, *how = args
    nothing = target.new_empty(0)
    _, work = func(nothing, nothing, *how, **kwargs)
    return target, work


def _made_up(tensor: Tensor) -> Any:
    return False if tensor.dtype is torch.bool else 1.0 if tensor.is_floating_point() else 1


def _written(func: Operation, args: tuple, kwargs: dict) -> Any:
    """What an operation that writes into its arguments returns: they themselves."""
    returns = func._schema.returns
    if not returns:
        return None
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    of_set = {
        next(iter(argument.alias_info.before_set)): given[argument.name]
        for argument in func._schema.arguments if argument.alias_info is not None and argument.name in given
    }
    found = tuple(of_set[next(iter(result.alias_info.before_set))] for result in returns)
    return found[0] if len(found) == 1 else found
