"""The four kinds of samples that a batch of TwinFlow is cut into (arXiv 2512.05150), and their times."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.random import Draws, Positions
from ..core.types import Batch, Generator
from ..flow.mean_velocity import Interval
from ..flow.path import interpolate

QUARTERS = 4


class Quarters(NamedTuple):
    """Where the quarters of this microbatch end; the last one, of adversarial samples, ends with it."""

    ones: int  # one step: t = 1, r = 0
    near: int  # r just below t
    far: int  # any r
    part: float  # what a one-step sample counts in a mean over those of the global batch


def quarters_of(positions: Positions) -> Quarters:
    """By fixed numbers of the global batch: in each microbatch of four samples or more there are some of every kind.

    What is left over by four is adversarial, as published.
    """
    quarter = positions.total // QUARTERS
    ends = [quarter * number for number in range(1, QUARTERS)]
    # A microbatch's loss is averaged over all `stride` of them; dividing by the global count makes that the mean.
    return Quarters(*(positions.below(end) for end in ends), positions.stride / max(quarter, 1))


def samples(
    network: Generator, batch: Batch, draws: Draws, quarters: Quarters, *, near: float, image_free: bool = False
) -> Interval:
    """Of all quarters, with the path's own velocity; the data of the last one are the network's, z - F(z, 1, 0).

    `near`: the largest interval of the near ones, as a share of t. `image_free`: so are the data of all quarters.
    """
    dtype, shape, (ones, to_near, far, _) = batch.x.dtype, batch.x.shape[1:], quarters
    real = 0 if image_free else far
    names = ("time", "target time, near", "target time, far")
    t, by_near, by_far = (draws.uniform(name).to(dtype) for name in names)
    t = torch.cat((torch.ones_like(t[:ones]), t[ones:]))
    r = torch.cat((
        torch.zeros_like(t[:ones]), (t - by_near * t * near)[ones:to_near], (t - by_far * t)[to_near:far], t[far:],
    ))
    z, own = (draws.normal(name, shape).to(dtype) for name in ("source noise", "noise of own samples"))
    with torch.no_grad():
        one = torch.ones_like(t[real:])
        fake = own[real:] - network(own[real:], one, 0 * one, batch.y[real:])
    x = torch.cat((batch.x[:real], fake))
    return Interval(interpolate(x, z, t), t, r, z - x)


def weight_of_time(found: Interval, far: int) -> Tensor:
    """tan((1 - (t - r)) pi / 2.5) + 1: from 4.08 at t = r to 1 at (1, 0); adversarial samples have 1. [B]."""
    weight = torch.tan((1 - (found.t - found.r)) * math.pi / 2.5) + 1
    return torch.cat((weight[:far], torch.ones_like(weight[far:])))
