"""A toy plan: one rank alone, which counts the steps of its players. Its settings and itself, in one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from afm_scale.core.errors import ConfigError
from afm_scale.parallel.kinds.kind import Described, PlanKind, Turn

if TYPE_CHECKING:
    from afm_scale.parallel.config import ParallelConfig
    from afm_scale.parallel.launch import Ranks
    from afm_scale.parallel.plan import ParallelPlan

steps_taken: list[str] = []
turns_told: list[Turn] = []


@dataclass(frozen=True, kw_only=True)
class SingleConfig(PlanKind):
    count_only: str = "all"  # whose steps are counted

    def check(self, config: ParallelConfig, world_size: int, described: Described) -> None:
        if world_size > 1:
            raise ConfigError(f"parallel.plan 'single' is for one rank, found {world_size}; set parallel.plan=ddp")

    def build(self, ranks: Ranks, config: ParallelConfig, turn: Turn) -> ParallelPlan:
        from afm_scale.parallel.base import BasePlan

        class SinglePlan(BasePlan):
            def step(self, player, step, admits=None):
                if config.single.count_only in ("all", player.role.value):
                    steps_taken.append(player.role.value)
                return super().step(player, step, admits)

        turns_told.append(turn)
        return SinglePlan(ranks, config, turn)
