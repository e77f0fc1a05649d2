"""Floating-point operations, counted on the meta device: real forwards and backwards in which nothing is computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..core.types import Role

# Dense bf16 peak of one GPU in TFLOP/s, as NVIDIA's data sheets say for the SXM modules (L40S: PCIe).
PEAK_TFLOPS = {"a100": 312, "h100": 989, "h200": 989, "gh200": 989, "l40s": 362, "b200": 2250}
_OTHER_FORMS = {"pcie", "nvl"}  # of the H100 and the H200: lower clocks than the SXM modules


def known_gpu(name: str) -> str | None:
    """The key of PEAK_TFLOPS for a GPU by its driver's name ('NVIDIA H100 80GB HBM3'); None if its peak is unknown."""
    words = re.split("[^a-z0-9]+", name.lower())
    found = next((word for word in words if word in PEAK_TFLOPS), None)
    return None if found in ("h100", "h200") and _OTHER_FORMS.intersection(words) else found


class FlopCounter(TorchDispatchMode):
    """Counts by the formulas of torch's FlopCounterMode, two operations to a multiplication and addition.

    That mode cannot be used here: it follows modules by hooks that fail inside `torch.autograd.grad`, which the
    generator's turn calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def turn_flops(networks: Mapping[Role, nn.Module], moving: Role, loss: Callable[[], Tensor]) -> int:
    """Operations of one player's turn: `loss()`, a scalar on the meta device, and its backward.

    Matrix products, convolutions and attention are counted; the rest is small beside them. Only the moving player's
    weights get gradients. On the CPU attention would be missed: its kernels there have no formula.
    """
    for role, network in networks.items():
        network.requires_grad_(role is moving)
        network.zero_grad()
    with FlopCounter() as counter:
        total = loss()
        assert total.is_meta
        total.backward()
    return counter.total
