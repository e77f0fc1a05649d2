"""From a configuration to networks on the meta device: shapes without storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.types import Role
from ..flow.path import Prediction
from .config import CLASSIFIERS, DISCRIMINATORS, GENERATORS, OBJECTIVES, RunConfig


def build_networks(config: RunConfig) -> dict[Role, nn.Module]:
    """The players' networks on the meta device: shapes without storage."""
    networks = {learner_of(config): build_learner(config)}
    if config.model.discriminator is not None:
        networks[Role.DISCRIMINATOR] = _on_meta(DISCRIMINATORS, config.model.discriminator, config)
    return networks


def build_learner(config: RunConfig) -> nn.Module:
    """The network that the run is for, or its average, on the meta device: the generator, or a classifier."""
    if learner_of(config) is Role.CLASSIFIER:
        return _on_meta(CLASSIFIERS, config.model.classifier, config)
    return build_generator(config)


def build_generator(config: RunConfig) -> nn.Module:
    """The generator (or its average) on the meta device."""
    return _on_meta(GENERATORS, config.model.generator, config)


def build_classifier(config: RunConfig) -> nn.Module | None:
    """The guiding classifier on the meta device; None where there is none, or where it is trained."""
    if config.model.classifier is None or learner_of(config) is Role.CLASSIFIER:
        return None
    return _on_meta(CLASSIFIERS, config.model.classifier, config)


def _on_meta(table: Mapping[type, type[nn.Module]], described: Any, config: RunConfig) -> nn.Module:
    with torch.device("meta"):
        return table[type(described)](described, config.data.shape, config.data.num_classes)


def learner_of(config: RunConfig) -> Role:
    return OBJECTIVES[type(config.objective)].learner


def prediction_of(config: RunConfig) -> Prediction:
    """What the generator's output means: the objective knows."""
    return OBJECTIVES[type(config.objective)](config.objective, lambda value: value, torch.device("cpu")).prediction
