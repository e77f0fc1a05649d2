"""A check that what several ranks hold copies of is the same on all of them, bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ...core.errors import DivergenceError
from ...core.ranges import Count
from ...parallel.plan import ParallelPlan
from ..state import TrainState
from .events import EventLog
from .hook import QuietHook, StepReport
from .surroundings import Surroundings

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 0x1E3779B97F4A7C15  # near the golden ratio of 2 ** 63, so that neighbours come to lie far apart


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """The copies are compared before every save, and every `every_steps` as well if that is not null."""

    every_steps: Count | None = None  # between two comparisons; null: before saves alone


class ConsistencyHook(QuietHook):
    """Compares a digest of every tensor of the checkpoint over the ranks that hold the same part of it.

    Those are all ranks under DDP, and those with the same share of a network under Megatron and hybrid sharding; where
    every part lies on one rank alone there is nothing to compare.
    """

    def __init__(self, plan: ParallelPlan, config: ConsistencyConfig, events: EventLog) -> None:
        self._plan = plan
        self._config = config
        self._events = events

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if self._config.every_steps is not None and report.step % self._config.every_steps == 0:
            self.look(state)

    def look(self, state: TrainState) -> None:
        """Collective; waits for the device. Raises DivergenceError, the same on every rank, naming a tensor."""
        if self._plan.world_size == 1:
            return
        tensors = state.tensors(self._plan)
        mine = digests(tensors)
        table = [torch.empty_like(mine) for _ in range(self._plan.world_size)]
        dist.all_gather(table, mine)
        for name, row in zip(tensors, torch.stack(table, dim=1).tolist(), strict=True):
            first: dict[int, tuple[int, int]] = {}  # the part -> (its digest, the lowest rank that holds it)
            for rank, (part, digest) in enumerate(row):
                first.setdefault(part, (digest, rank))
            differing = [rank for rank, (part, digest) in enumerate(row) if digest != first[part][0]]
            if differing:
                self._raise(state.step, name, first[row[differing[0]][0]][1], differing)

    def _raise(self, step: int, name: str, rank: int, differing: list[int]) -> None:
        self._events.write("inconsistency", step=step, tensor=name, rank=rank, differing=differing)
        raise DivergenceError(
            f"{name} at step {step} is not the same on rank {rank} and on rank(s) {', '.join(map(str, differing))}, "
            "which should hold copies of it; run the same command again to go on from the newest checkpoint, and if it "
            "happens again look for a faulty device among them, or set parallel.deterministic=true"
        )


def digests(tensors: Mapping[str, Tensor]) -> Tensor:
    """int64 [N, 2] on the CPU: which part of each tensor this rank holds, and a digest of the bits of that part."""
    parts, sums = [], []
    for tensor in tensors.values():
        where: list[int] = []
        if isinstance(tensor, DTensor):
            coordinate = tensor.device_mesh.get_coordinate() or []
            where = [at for at, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_shard()]
            tensor = tensor.to_local()
        parts.append(zlib.crc32(repr(where).encode()))
        sums.append(_digest(tensor.detach()))
    return torch.stack([torch.tensor(parts, dtype=torch.int64), torch.stack(sums).cpu()], dim=1)


def _digest(tensor: Tensor) -> Tensor:
    """int64 []: changes with any bit and with the order; sums of int64 wrap, in whatever order they are taken."""
    bits = tensor.contiguous().view(_BITS[tensor.element_size()]).flatten().to(torch.int64)
    mixed = (bits + torch.arange(len(bits), device=bits.device)) * _ODD
    return ((mixed ^ (mixed >> 29)) * _ODD).sum()


def build(config: ConsistencyConfig, around: Surroundings) -> ConsistencyHook:
    hook = ConsistencyHook(around.plan, config, around.events)
    around.before_save.append(hook.look)
    return hook
