"""Whole copies of every network on each rank; gradients are averaged while the backward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .base import BasePlan, WhileLearning
from .plan import Player


class DDPPlan(BasePlan):
    _data_group: dist.ProcessGroup | None = None  # over which gradients are averaged; None: all ranks

    def _network(self, module: nn.Module) -> Callable[..., Tensor]:
        if self.num_data_ranks == 1:
            return module
        wrapper = DistributedDataParallel(
            module, device_ids=[self.device.index] if self.device.type == "cuda" else None,
            process_group=self._data_group, init_sync=False, gradient_as_bucket_view=True,
        )
        wrapper.broadcast_buffers = False  # afterwards: torch 2.13 renamed the argument and warns of the old one
        return WhileLearning(module, wrapper)

    @contextmanager
    def _reducing(self, player: Player, last: bool) -> Iterator[None]:
        if self.num_data_ranks == 1 or last:
            yield
        else:
            with player.network.wrapper.no_sync():
                yield
