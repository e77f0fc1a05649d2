"""The sources a recipe may choose by `data.kind`: adding one is a file and a line here.

A configuration says what its source needs and gives (`source.SourceConfig`); the table says how it is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..core.kinds import one_of
from ..core.packages import require
from .images import DaliConfig, WebDatasetConfig
from .images_to_latents import Encode, ImagesToLatents, ImagesToLatentsConfig
from .latents import LatentsConfig, LatentsSource
from .prompts_alone import PromptsConfig, PromptsSource
from .source import DataSource, SourceConfig
from .text_buckets import TextBucketsConfig, text_buckets
from .text_latents import TextLatentsConfig, TextLatentsSource
from .toys.captioned_mnist import CaptionedMnistConfig, CaptionedMnistSource
from .toys.digits import DigitsConfig, DigitsSource
from .toys.mixture1d import Mixture1DConfig, Mixture1DSource
from .toys.mixture2d import Mixture2DConfig, Mixture2DSource
from .toys.mnist import MnistConfig, MnistSource
from .toys.synthetic import SyntheticLatents, SyntheticLatentsConfig
from .webdataset import WebDatasetSource

EncoderOf = Callable[[Any, torch.device], Encode]
"""From the configuration of a source that encodes (`vae`, `scale`, `precision`, `compile`) to the encoder."""


def _dali(config: DaliConfig, **place: Any) -> DataSource:
    from .dali import DaliSource  # needs its package, which is imported only when the configuration names it

    return DaliSource(config, **place)


def _images_to_latents(config: ImagesToLatentsConfig, *, encode: Encode, **place: Any) -> DataSource:
    return ImagesToLatents(config, build_source(config.images(), **place), encode, **place)


SOURCES: dict[type[SourceConfig], Callable[..., DataSource]] = {
    DigitsConfig: DigitsSource,
    MnistConfig: MnistSource,
    CaptionedMnistConfig: CaptionedMnistSource,
    Mixture1DConfig: Mixture1DSource,
    Mixture2DConfig: Mixture2DSource,
    SyntheticLatentsConfig: SyntheticLatents,
    WebDatasetConfig: WebDatasetSource,
    DaliConfig: _dali,
    LatentsConfig: LatentsSource,
    TextLatentsConfig: TextLatentsSource,
    TextBucketsConfig: text_buckets,
    PromptsConfig: PromptsSource,
    ImagesToLatentsConfig: _images_to_latents,
}

AnySource = one_of(SOURCES)


def build_source(
    config: SourceConfig, *, seed: int, rank: int, world_size: int, device: torch.device,
    encoder_of: EncoderOf | None = None,
) -> DataSource:
    """The source of a configuration, at its beginning. What the configuration leaves out is read from its data.

    Args:
        rank, world_size: this rank's share of every global batch, and how many shares there are.
        device: where its samples are to lie.
        encoder_of: what makes an encoder, for a source that wants one.

    Raises ConfigError if an optional package is missing, and whatever UserError the source raises.
    """
    check_packages(config)
    config = config.resolved()
    place: dict[str, Any] = {"seed": seed, "rank": rank, "world_size": world_size, "device": device}
    if config.encodes:
        assert encoder_of is not None, f"a source of kind {config.kind!r} encodes: hand it an encoder"
        place["encode"] = encoder_of(config, device)
    return SOURCES[type(config)](config, **place)


def check_packages(config: SourceConfig | type[SourceConfig]) -> None:
    """Raises ConfigError, with what to install, if a package that the source needs is missing."""
    if config.needs is not None:
        require(config.needs.package, f"data.kind {config.kind!r}", config.needs.extra)
