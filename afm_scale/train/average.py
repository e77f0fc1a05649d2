"""The average (EMA) of the weights of the generator, or of a classifier: what is sampled, evaluated and published."""

from __future__ import annotations

import torch
from torch import nn

from ..core.schedules import AverageConfig
from ..ops.average import average_
from ..parallel.plan import ParallelPlan, Player


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
        weights = learner.moving(self._plan.local_tensors(learner.module))
        weight = 1 - self._config.decay_at(step)
        average_([self._shards[name] for name in weights], list(weights.values()), weight)
