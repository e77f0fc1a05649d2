"""The derivative of a network along a direction, without a graph: in forward mode, or by central differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from .path import expand_times


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


@torch.no_grad()
def central_difference(
    network: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor], velocity: Tensor, low: Tensor,
    step: float,
) -> Tensor:
    """du/dt along the path from two points at (x + e v, t + e) and (x - e v, t - e), without a graph.

    One-sided where a point would lie beyond 1, or below the interval. A rounding error of u enters divided by
    2 e: blocks in bf16 would leave little but that.

    Args:
        network: u(x [B, C, H, W], t [B]); called once, with 2 B samples.
        inputs: x and t; `velocity`: v, of x's shape; `low`: [B] where each interval ends.
        step: e.

    Returns [B, C, H, W]; its error is of the order e^2, or e where it is one-sided.
    """
    x, t = inputs
    rises = t + step <= 1
    falls = (t - step > low) | ~rises
    after, before = t + step * rises, t - step * falls
    moved = [x + expand_times(time - t, x) * velocity for time in (after, before)]
    ends = network(torch.cat(moved), torch.cat((after, before))).chunk(2)
    return (ends[0] - ends[1]) / expand_times(after - before, x)


@cache
def _load_formulas() -> None:
    """What torch would import in its first derivative, with a warning of its own code that nobody here can heed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401
