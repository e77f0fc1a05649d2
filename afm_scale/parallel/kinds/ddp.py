"""Data parallelism with whole networks on every rank: nothing to choose, and no demands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kind import PlanKind, Turn

if TYPE_CHECKING:
    from ..config import ParallelConfig
    from ..launch import Ranks
    from ..plan import ParallelPlan


@dataclass(frozen=True, kw_only=True)
class DDPConfig(PlanKind):
    """A turn sums each gradient over the ranks once, in its last backward; a forward sends nothing."""

    def build(self, ranks: Ranks, config: ParallelConfig, turn: Turn) -> ParallelPlan:
        from ..ddp import DDPPlan

        return DDPPlan(ranks, config, turn)
