"""Operations, and bytes of memory read and written, of the kernels of a step, counted as it is taken."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import torch

from .formulas import formula_of
from .ledger import Ledger, tensors_in

_ATEN = torch.ops.aten
_NAMED = torch.ops.profiler._record_function_enter_new.default
_NAMESPACES_SENT = ("c10d", "_c10d_functional", "c10d_functional")


class Cost(NamedTuple):
    """Of one kernel."""

    flops: int  # of products; 0: it moves bytes alone
    bytes: int  # read and written, each tensor once
    dtype: torch.dtype  # of its products


class Around(NamedTuple):
    """What a step's host does beside calling kernels."""

    hooks: int = 0  # of FSDP2's, around blocks: all that it names for a profiler
    again: int = 0  # kernels whose results a recomputation hands to autograd, one by one


class Costs:
    """Observes `Hollow`, and counts kernels by turn, occasion and cost, and what is around them."""

    def __init__(self, ledger: Ledger) -> None:
        self.clear()
        self._ledger = ledger
        self._known: dict[int, Cost] = {}

    def __call__(self, func: Any, args: tuple, kwargs: dict, out: Any, key: int | None) -> None:
        if func.namespace in _NAMESPACES_SENT:
            return
        if func.namespace == "profiler":
            self._hooks += func is _NAMED and args[0].startswith("FSDP::")
            return
        self._again += torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1
        cost = None if key is None else self._known.get(key)
        if cost is None:
            cost = _cost(func, args, kwargs, out)
            if key is not None:
                self._known[key] = cost
        self.found[self._ledger.mover, self._ledger.occasion][cost] += 1

    @property
    def around(self) -> Around:
        return Around(hooks=self._hooks, again=self._again)

    def clear(self) -> None:
        self.found: dict[tuple[str, str], Counter[Cost]] = defaultdict(Counter)
        self._hooks = self._again = 0


def _cost(func: Any, args: tuple, kwargs: dict, out: Any) -> Cost:
    moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in((*args, *kwargs.values(), out)))
    if func in _EMPTY:
        moved = 0
    first = next((tensor for tensor in tensors_in(args) if tensor.is_floating_point()), None)
    return Cost(_flops(func, args, kwargs, out), moved, torch.float32 if first is None else first.dtype)


_EMPTY = {_ATEN.empty.memory_format, _ATEN.empty_strided.default, _ATEN.empty_like.default, _ATEN.new_empty.default}


def _flops(func: Any, args: tuple, kwargs: dict, out: Any) -> int:
    formula = formula_of(func)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
