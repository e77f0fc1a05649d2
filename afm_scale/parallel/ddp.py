"""Whole copies of every network on each rank; gradients are averaged while the backward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .plan import Player
from .replicated import ReplicatedPlan


class _DDPNetwork:
    """Calls the wrapper while its player learns, the bare module otherwise.

    The wrapper prepares for a backward in each forward; one that a frozen network never gets would upset it.
    """

    def __init__(self, module: nn.Module, device: torch.device, group: dist.ProcessGroup | None) -> None:
        ids = [device.index] if device.type == "cuda" else None
        self.module = module
        self.wrapper = DistributedDataParallel(
            module, device_ids=ids, process_group=group, init_sync=False, gradient_as_bucket_view=True
        )
        self.wrapper.broadcast_buffers = False  # afterwards: torch 2.13 renamed the argument and warns of the old one

    def __call__(self, *inputs: Tensor, **options: Any) -> Tensor:
        learns = torch.is_grad_enabled() and next(self.module.parameters()).requires_grad
        return (self.wrapper if learns else self.module)(*inputs, **options)


class DDPPlan(ReplicatedPlan):
    _data_group: dist.ProcessGroup | None = None  # over which gradients are averaged; None: all ranks

    def _network(self, module: nn.Module) -> Callable[..., Tensor]:
        return _DDPNetwork(module, self.device, self._data_group) if self.num_data_ranks > 1 else module

    @contextmanager
    def _reducing(self, player: Player, last: bool) -> Iterator[None]:
        if self.num_data_ranks == 1 or last:
            yield
        else:
            with player.network.wrapper.no_sync():
                yield
