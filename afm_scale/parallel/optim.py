"""The optimizer of a player: AdamW as published, its state allocated at once so that it can be listed and loaded.

It lives beside the plans because they build it: over shards, or inside an engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ..core.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW on all parameters without exclusions (AFM paper, Table 10)."""

    learning_rate: Schedule
    betas: tuple[float, float] = (0.0, 0.9)
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 50.0  # L2 norm over all of the player's parameters; 50 hardly ever clips


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW whose state exists before the first step, so that saving and loading never meet an empty one."""
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate(0), betas=config.betas, eps=config.eps,
        weight_decay=config.weight_decay, foreach=True,
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
    return optimizer
