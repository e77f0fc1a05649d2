"""The average (EMA) of the weights of the generator, or of a classifier: what is sampled, evaluated and published."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..ops.average import average_
from ..parallel.plan import ParallelPlan, Player


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """average <- decay average + (1 - decay) weights, once per update of the learner, in the weights' precision."""

    decay: float  # 0.9999 as published; 0 copies the weights
    warm_up: bool = False  # use min(decay, (1 + k) / (10 + k)) at update k = 0, 1, ...: forgets the start sooner

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay


class Average:
    """An exponential moving average, laid over the ranks exactly as the learner: updating it communicates nothing."""

    def __init__(self, network: nn.Module, config: AverageConfig, plan: ParallelPlan) -> None:
        self.network = network
        self._config = config
        self._plan = plan
        self._shards = plan.local_tensors(network)

    @torch.no_grad()
    def update(self, learner: Player, step: int) -> None:
        """Moves the average after the learner's update number `step` (counted from 0)."""
        self._plan.reshard(self.network)  # samples may have been drawn since
        weights = self._plan.local_tensors(learner.module)
        weight = 1 - self._config.decay_at(step)
        average_(list(self._shards.values()), [weights[name] for name in self._shards], weight)
