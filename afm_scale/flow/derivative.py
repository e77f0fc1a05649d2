"""The derivative of a network along a direction, in forward mode: one pass, and nothing is kept of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor


def derivative(
    network: Callable[..., Tensor], inputs: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(network(*inputs), d/de network(*(inputs + e tangents)) at e = 0), both of the output's shape, without a graph.

    For du/dt of u(x_t, t, r) along the path: inputs (x_t, t, r), tangents (v, 1, 0). It is a target, not to be learnt
    through: a gradient is taken by another call, by which plans see the network they prepared for its backward.
    """
    _load_formulas()
    with torch.no_grad():
        value, tangent = torch.func.jvp(network, tuple(inputs), tuple(tangents))
    return value, tangent


@cache
def _load_formulas() -> None:
    """What torch would import in its first derivative, with a warning of its own code that nobody here can heed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401
