"""What the mean velocity over an interval is, said by a network's own values elsewhere: targets without a graph.

u(x_t, t, r) is the mean of the velocity over [r, t], so that x_r = x_t - (t - r) u. (Sources and targets are called t
and r here, as in the papers; everywhere else s and t.) With s = t - D, D = a (t - r), x_s = x_t - D v:

    target_a = a v + (1 - a) u(x_s, s, r)              exact where v is the velocity over [s, t]   (arXiv 2510.20771)
    target_0 = v - (t - r) d/dt u(x_t, t, r)           its limit, along the path                   (arXiv 2505.13447)
    (t - r) u = D v + int_r^s u                        the same, the rest in N jumps               (arXiv 2512.05150)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..core.ranges import Range, Share
from ..core.types import Generator, without_class
from .path import expand_times

Called = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(x [B, C, H, W], t [B], r [B]) of given labels."""


class Interval(NamedTuple):
    """Samples and the intervals that they are asked about."""

    x: Tensor  # [B, C, H, W] x_t
    t: Tensor  # [B] in the dtype of x
    r: Tensor  # [B]
    velocity: Tensor  # [B, C, H, W] that the path has at t

    @property
    def length(self) -> Tensor:
        """t - r, [B, 1, 1, 1]."""
        return expand_times(self.t - self.r, self.x)

    def rows(self, start: int, end: int | None = None) -> Interval:
        return Interval(*(values[start:end] for values in self))


@dataclass(frozen=True, kw_only=True)
class MixedVelocity:
    """Guidance in training: where low < t < high the velocity learnt is, without a gradient,

        omega v + kappa u(x_t, t, t, y) + (1 - omega - kappa) u(x_t, t, t, no class)

    of the network itself. Since u then is what it is mixed with, the effective scale is omega / (1 - kappa).
    """

    omega: Annotated[float, Range(0, 100)] = 1.0  # share of the path's own velocity
    kappa: Annotated[float, Range(0, below=1)] = 0.0  # share of the network's velocity with the class
    low: Share = 0.0  # times between these, and not at them, are guided
    high: Share = 1.0  # see low

    @torch.no_grad()
    def __call__(self, network: Generator, found: Interval, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mixed velocity, and the network's with the class if it was asked for; [B, C, H, W] each.

        One call of the network, of all samples whatever their times, so that every rank makes the same ones.
        """
        labels = [without_class(y), y] if self.kappa > 0 else [without_class(y)]
        of_none, *of_class = velocities(network, found.x, found.t, *labels)
        mixed = self.omega * found.velocity + (1 - self.omega - self.kappa) * of_none
        mixed = mixed + self.kappa * of_class[0] if of_class else mixed
        guided = expand_times((found.t > self.low) & (found.t < self.high), found.x).bool()
        return torch.where(guided, mixed, found.velocity), of_class[0] if of_class else None


@torch.no_grad()
def velocities(network: Generator, x: Tensor, t: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
    """u(x, t, t, y) for each of the labels y [B], by one call of as many times the samples; [B, C, H, W] each."""
    count = len(labels)
    times = t.repeat(count)
    return network(x.repeat(count, 1, 1, 1), times, times, torch.cat(labels)).chunk(count)


@torch.no_grad()
def discrete_target(network: Called, found: Interval, alpha: float) -> Tensor:
    """target_a, [B, C, H, W]. Where t = r it is the velocity."""
    s = found.t - alpha * (found.t - found.r)
    taken = expand_times(found.t - s, found.x)  # as rounded: D, by which the sample moves too
    rest = network(found.x - taken * found.velocity, s, found.r)
    share = torch.where(found.length > 0, taken / found.length.clamp(min=torch.finfo(found.x.dtype).tiny), 1.0)
    return share * found.velocity + (1 - share) * rest


def limit_target(found: Interval, along: Tensor) -> Tensor:
    """target_0 of du/dt along the path, [B, C, H, W]."""
    return found.velocity - found.length * along


@torch.no_grad()
def residual(network: Called, found: Interval, prediction: Tensor, step: float, jumps: int) -> Tensor:
    """[(t - r) u - int_r^s u^-] / D - v, with D = `step` and the integral in `jumps` equal parts; [B, C, H, W].

    Where the interval is shorter than D it is u - v: there the velocity is the mean velocity. `prediction` is u.
    """
    s = torch.maximum(found.t - step, found.r)
    taken = expand_times(found.t - s, found.x)
    x, integral = found.x - taken * found.velocity, torch.zeros_like(found.x)
    for number in range(jumps):
        start, end = (torch.lerp(s, found.r, (number + passed) / jumps) for passed in (0, 1))
        jump = expand_times(start - end, found.x) * network(x, start, end)
        x, integral = x - jump, integral + jump
    shorter = found.length < step
    long = (found.length * prediction - integral) / torch.where(shorter, 1.0, taken) - found.velocity
    return torch.where(shorter, prediction - found.velocity, long)
