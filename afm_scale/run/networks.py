"""From a configuration to networks on the meta device, shapes without storage, and to the objective that asks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.types import Reduce, Role
from ..models.table import CLASSIFIERS, DISCRIMINATORS, GENERATORS
from ..objectives.objective import Objective
from ..objectives.table import OBJECTIVES
from .config import RunConfig

_TABLES = {Role.GENERATOR: GENERATORS, Role.DISCRIMINATOR: DISCRIMINATORS, Role.CLASSIFIER: CLASSIFIERS}


def build_networks(config: RunConfig) -> dict[Role, nn.Module]:
    """The players' networks on the meta device, the learner's first."""
    return {role: build_network(config, role) for role in config.objective.roles}


def build_network(config: RunConfig, role: Role) -> nn.Module:
    """A network as it is described under `model`, on the meta device."""
    return build_described(role, getattr(config.model, role.value), config.data.shape, config.data.num_classes)


def build_described(role: Role, described: Any, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The network that a configuration describes, for samples of this shape [C, H, W], on the meta device."""
    table: Mapping[type, Any] = _TABLES[role]
    with torch.device("meta"):
        return table[type(described)](described, shape, num_classes)


def learner_of(config: RunConfig) -> Role:
    """The player that the run is for."""
    return config.objective.roles[0]


def build_learner(config: RunConfig) -> nn.Module:
    """The network that the run is for, or its average, on the meta device."""
    return build_network(config, learner_of(config))


def build_objective(config: RunConfig, mean_over_ranks: Reduce, device: torch.device) -> Objective:
    """The recipe's objective, with what it leaves open decided."""
    resolved = config.objective.resolved(config.parallel.precision).over(config.loop.steps)
    return OBJECTIVES[type(resolved)](resolved, mean_over_ranks, device)
