"""Floating-point operations, counted on the meta device: real forwards and backwards in which nothing is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.types import Role, Turn
from .formulas import formula_of


class FlopCounter(TorchDispatchMode):
    """Counts by the formulas of torch's FlopCounterMode, two operations to a multiplication and addition, part by part.

    That mode cannot be used here: it follows modules by hooks that fail inside `torch.autograd.grad`, which the
    generator's turn calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: Counter[str] = Counter()  # by the name of the part, in the order in which they were met
        self._part = "forward"

    @property
    def total(self) -> int:
        return self.parts.total()

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """What is done in the block is counted as of this part."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = formula_of(func)
        if formula is not None:
            self.parts[self._part] += formula(*args, **(kwargs or {}), out_val=out)
        return out


class CountedNetwork:
    """A network whose calls are counted as a part of their own, `NAME forward`."""

    def __init__(self, network: nn.Module, name: str, counter: FlopCounter) -> None:
        self._network, self._name, self._counter = network, name, counter

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        with self._counter.counting(f"{self._name} forward"):
            return self._network(*inputs, **options)


def count_turn(
    counter: FlopCounter, networks: Mapping[Role, nn.Module], turn: Turn, loss: Callable[[Role], Tensor]
) -> None:
    """Counts the operations of a turn: `loss(role)` of each who moves, a scalar on the meta device, and its backward.

    Matrix products, convolutions and attention are counted; the rest is small beside them. Only the weights of those
    who move get gradients. On the CPU attention would be missed: its kernels there have no formula. Parts: the calls of
    `CountedNetwork`s; `to samples`: gradients that a loss takes by itself; `ROLE backward`: the rest of a mover's.
    """
    for role, network in networks.items():
        network.requires_grad_(role in turn)
        network.zero_grad()
    with counter:
        for role in turn:
            with counter.counting("to samples"):
                total = loss(role)
            assert total.is_meta
            with counter.counting(f"{role.value} backward"):
                total.backward()
