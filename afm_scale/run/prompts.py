"""Networks that are told prompts, and the data that have some."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..core.conditions import Conditions, ConditionShape, Told
from ..core.errors import ConfigError
from ..data.source import SourceConfig
from ..models.network_config import NetworkConfig
from .config import ModelConfig

_LENGTH = 4  # tokens of a random prompt


def prompts_of(data: SourceConfig, device: torch.device) -> Conditions | None:
    """What samples are drawn for, on the device; None where data have classes. Raises DataError if it is not there."""
    table = data.prompts()
    return None if table is None else table.to(device)


def labels_of(network: NetworkConfig, num_classes: int, count: int, dtype: torch.dtype) -> Told:
    """Something to tell a network of so many samples: classes in turn, or prompts of random numbers."""
    if network.prompt_width is None and network.pooled_width is None:
        return torch.arange(count) % num_classes
    random = torch.Generator().manual_seed(0)
    embeddings = torch.randn(count, _LENGTH, network.prompt_width or 1, generator=random).to(dtype)
    pooled = torch.randn(count, network.pooled_width or 0, generator=random).to(dtype)
    return Conditions(embeddings, torch.ones(count, _LENGTH, dtype=torch.bool), pooled)


def check_told(data: SourceConfig, model: ModelConfig) -> None:
    """Raises ConfigError if a network is told prompts of which the data have none, or others, or the other way about.
    """
    shape = data.prompt_shape
    for name in ("generator", "discriminator"):
        network = getattr(model, name)
        if network is not None:
            wanted = {"width": network.prompt_width, "pooled": network.pooled_width}
            _check_network(
                f"model.{name} of kind {network.kind!r}", data.kind, shape,
                {key: number for key, number in wanted.items() if number is not None},
            )
    if shape is not None and model.classifier is not None:
        raise ConfigError(
            f"model.classifier is of classes, but data.kind {data.kind!r} has prompts here; set model.classifier=null"
        )


def _check_network(setting: str, kind: str, shape: ConditionShape | None, wanted: Mapping[str, int]) -> None:
    if shape is None and wanted:
        raise ConfigError(f"{setting} is told prompts, but data.kind {kind!r} has classes here; choose data of prompts")
    if shape is not None and not wanted:
        raise ConfigError(
            f"{setting} is told classes, but data.kind {kind!r} has prompts here; choose a network that is told "
            "prompts, or data of classes"
        )
    for key, number in wanted.items():
        found, of = getattr(shape, key), {"width": "each token", "pooled": "a whole prompt"}[key]
        if found != number:
            raise ConfigError(
                f"{setting} is told {number} numbers for {of}, of which the data have {found}: their prompts are of "
                "another text encoder; encode them with the one that this network is for"
            )
