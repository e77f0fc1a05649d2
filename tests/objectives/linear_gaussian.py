"""Gaussian data in one dimension, whose velocity and mean velocity are known, and networks that can be both.

x ~ N(m, d^2), so x_t ~ N((1 - t) m, c(t)^2) with c(t)^2 = (1 - t)^2 d^2 + t^2, and the flow scales about its mean:

    x_r = (1 - r) m + c(r) / c(t) (x_t - (1 - t) m),   u(x_t, t, r) = (x_t - x_r) / (t - r)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.types import PUBLISHED, Batch, Networks, Role, networks_of
from afm_scale.objectives.objective import Objective

MEAN, VARIANCE = 0.7, 0.25


def width(t: Tensor) -> Tensor:
    return ((1 - t) ** 2 * VARIANCE + t**2).sqrt()


def mean_velocity(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """u of x [B, 1, 1, 1] at t, r [B, 1, 1, 1]; the velocity where they are equal."""
    slope = ((t + r) + VARIANCE * (t + r - 2)) / (width(t) + width(r))  # (c(t) - c(r)) / (t - r)
    return slope / width(t) * (x - (1 - t) * MEAN) - MEAN


class NearlyExact(nn.Module):
    """The mean velocity and, with weights that should become zero, ways to leave it; a twin at negative times."""

    def __init__(self) -> None:
        super().__init__()
        self.off = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.twin_off = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor) -> Tensor:
        t, r = t.view(-1, 1, 1, 1).double(), r.view(-1, 1, 1, 1).double()
        is_twin, t, r = t < 0, torch.where(t < 0, -t, t), torch.where(t < 0, -r, r)
        a, b, c, d = self.off
        off = torch.where(is_twin, self.twin_off[0] + self.twin_off[1] * x, a + b * x + (t - r) * (c + d * x))
        return mean_velocity(x, t, r) + off


def batch_of(count: int) -> Batch:
    draws = KeyedDraws("data", positions=Positions(0, 1, count))
    x = MEAN + VARIANCE**0.5 * draws.normal("x", (1, 1, 1)).double()
    return Batch(x, torch.zeros(count, dtype=torch.int64))


def networks(network: nn.Module, *others: str) -> Networks:
    return networks_of({Role.GENERATOR: network}, {name: network for name in (PUBLISHED, *others)}, {})


class FixedPoint(NamedTuple):
    """Where gradient descent ends: g(w) = g + A w near w = 0, the exact network."""

    off: Tensor  # -A^-1 g, where the gradient vanishes
    rates: Tensor  # real parts of A's eigenvalues: it is approached where all are positive


def fixed_point(objective: Objective, network: NearlyExact, nets: Networks, *, count: int, step: int = 0) -> FixedPoint:
    """By gradients of one batch at the exact network and a little away from it in each direction."""
    weights = [*network.parameters()]
    draws = KeyedDraws("draws", positions=Positions(0, 1, count))
    batch = batch_of(count)

    def gradient(off: Tensor) -> Tensor:
        with torch.no_grad():
            for weight, values in zip(weights, off.split([len(weight) for weight in weights]), strict=True):
                weight.copy_(values)
        loss = objective.loss(Role.GENERATOR, nets, batch, draws, step).total
        found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return torch.cat(found)

    size, small = sum(map(len, weights)), 0.02
    at_exact = gradient(torch.zeros(size, dtype=torch.float64))
    used = at_exact != 0  # a network without twins has no gradient there
    ways = small * torch.eye(size, dtype=torch.float64)[used]
    slopes = torch.stack([(gradient(way) - gradient(-way)) / (2 * small) for way in ways], dim=1)[used]
    return FixedPoint(-torch.linalg.solve(slopes, at_exact[used]), torch.linalg.eigvals(slopes).real)
