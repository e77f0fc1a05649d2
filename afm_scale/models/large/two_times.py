"""The second time of an interval, told to a transformer that knows one (TwinFlow, arXiv 2512.05150, its program).

    E1(t) + (t - r) E2(r),   E2 beginning as a copy of E1: at t = r the pretrained velocity, bit for bit

Both times go through the same sinusoids, odd sines and even cosines: so a negative time is another time, and its sign
needs no embedding of its own. Between negative times t = r, or r < t.

The forward of the class stays as it is. It is given 2 B times, t and then r, which reach the module that embeds them;
that module's forward is replaced on the instance, so that no tensor of the class has another name.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter


def second_embedder(transformer: nn.Module, adapter: Adapter) -> nn.Module:
    """E2, as a module of the same shapes as E1, on the meta device."""
    return deepcopy(transformer.get_submodule(adapter.time_embedder))


def tell_intervals(transformer: nn.Module, adapter: Adapter, second: nn.Module) -> None:
    """From now on the transformer is given times [2 B] for samples [B]."""
    module = transformer.get_submodule(adapter.time_module)
    projection = adapter.time_projection
    sinusoids = nn.Identity() if projection is None else transformer.get_submodule(projection)
    module.forward = partial(_forward, module.forward, sinusoids, second, adapter.time_unit)


def both(t: Tensor, r: Tensor) -> Tensor:
    """What a transformer that is told intervals is given: [B] and [B] -> [2 B]."""
    return torch.cat((t, r))


def _forward(
    first: Callable[..., Tensor], sinusoids: nn.Module, second: nn.Module, unit: float, times: Tensor, *inputs: Any,
    **options: Any,
) -> Tensor:
    t, r = times.chunk(2)
    told = first(t, *inputs, **options)
    gate = ((t - r) / unit).to(told.dtype)[:, None]
    return told + gate * second(sinusoids(r).to(told.dtype))
