"""From the configuration of the data to its source. Optional packages are imported here, when they are named."""

from __future__ import annotations

from typing import Union

import torch

from ..core.packages import require
from ..data.images import DaliConfig, WebDatasetConfig
from ..data.images_to_latents import ImagesToLatents, ImagesToLatentsConfig
from ..data.latents import LatentsConfig, LatentsSource
from ..data.source import DataSource, SourceConfig
from ..data.toys.digits import DigitsConfig, DigitsSource
from ..data.toys.mnist import MnistConfig, MnistSource
from ..data.toys.mixture1d import Mixture1DConfig, Mixture1DSource
from ..data.toys.mixture2d import Mixture2DConfig, Mixture2DSource
from ..data.toys.synthetic import SyntheticLatents, SyntheticLatentsConfig
from ..data.webdataset import WebDatasetSource
from .autoencoders import build_encoder

SOURCES = {
    DigitsConfig: DigitsSource,
    MnistConfig: MnistSource,
    Mixture1DConfig: Mixture1DSource,
    Mixture2DConfig: Mixture2DSource,
    SyntheticLatentsConfig: SyntheticLatents,
    WebDatasetConfig: WebDatasetSource,
    LatentsConfig: LatentsSource,
}

AnySource = Union[(*SOURCES, DaliConfig, ImagesToLatentsConfig)]  # noqa: UP007


def build_source(
    config: SourceConfig, *, seed: int, rank: int, world_size: int, device: torch.device
) -> DataSource:
    """Raises ConfigError if an optional package is missing, and whatever UserError the source raises."""
    place = {"seed": seed, "rank": rank, "world_size": world_size, "device": device}
    if isinstance(config, ImagesToLatentsConfig):
        return ImagesToLatents(config, build_source(config.images(), **place), build_encoder(config, device), **place)
    if isinstance(config, DaliConfig):
        require("nvidia.dali", "data.kind 'dali'", "dali")
        from ..data.dali import DaliSource

        return DaliSource(config, **place)
    return SOURCES[type(config)](config, **place)
