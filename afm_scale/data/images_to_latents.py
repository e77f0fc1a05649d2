"""Images encoded on the device as they come, by a frozen autoencoder: no second copy of the data, more work a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.paths import OrName
from ..core.ranges import Range
from ..core.types import Batch
from .images import DaliConfig, ImagesConfig, WebDatasetConfig
from .latents import posterior_sample
from .order import StreamCursor
from .source import DataSource, Encoding, Needs, Skipped

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels [B, 3, S, S] in [-1, 1] -> mean and standard deviation of the posterior, [B, C, h, w] float32, unscaled."""


@dataclass(frozen=True, kw_only=True)
class ImagesToLatentsConfig(ImagesConfig):
    """Images of a packed folder, and the autoencoder that makes latents of them."""

    needs: ClassVar[Needs] = Needs("diffusers", "latents")
    draws_latents: ClassVar[bool] = True
    encodes: ClassVar[bool] = True
    vae: Annotated[str, OrName()]  # a folder that diffusers' AutoencoderKL loads, or a name that it knows
    kind: Literal["images_to_latents"] = "images_to_latents"
    decoder: Literal["webdataset", "dali"] = "webdataset"  # of the images
    shape: Annotated[tuple[int, int, int], Range(1, 65_536)] = (4, 32, 32)  # C, H, W of a latent
    scale: Annotated[float, Range(above=0, high=1e6)] = 0.18215  # of a training latent: times the encoder's
    shift: Annotated[float, Range(-1e6, 1e6)] = 0.0  # taken off the encoder's before; as the autoencoder's files say
    precision: Literal["fp32", "bf16"] = "bf16"  # of the encoder; what it returns is float32
    compile: bool | None = None  # torch.compile of the encoder; null: on a GPU

    def __post_init__(self) -> None:
        self.images()  # refuses what the decoder cannot do

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        return "encoded on the GPU" if on_gpu else "encoded on the CPU, slowly"

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.vae, self.scale, self.shift)

    @property
    def starts_processes(self) -> bool:
        return self.images().starts_processes

    def images(self) -> WebDatasetConfig | DaliConfig:
        """The source of its images."""
        config = {"webdataset": WebDatasetConfig, "dali": DaliConfig}[self.decoder]
        return config(
            global_batch=self.global_batch, folder=self.folder, size=self.size, num_classes=self.num_classes,
            channels=self.channels, mirror=self.mirror, affine=self.affine, on_error=self.on_error,
            workers=self.workers, prefetch=self.prefetch,
        )


class ImagesToLatents:
    """A `DataSource` of posterior samples of another source's images.

    The noise is that of `LatentsSource`: encoded beforehand or now, a stream position holds the same latent, up to the
    rounding of what was stored and the encoder's precision.
    """

    def __init__(
        self, config: ImagesToLatentsConfig, images: DataSource, encode: Encode, *, seed: int, rank: int,
        world_size: int, device: torch.device | str,
    ) -> None:
        """Encodes one blank batch. Raises ConfigError if its latents are not of the shape of the configuration."""
        self.shape, self.num_classes = config.shape, config.num_classes
        self._config = config
        self._images = images
        self._encode = encode
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        if images.shape[0] != 3:
            raise ConfigError(f"{config.folder} holds grey images, {config.vae} encodes RGB; pack them without --grey")
        # A whole batch, so that an encoder that is compiled for its shapes is compiled now, and once.
        blank = torch.zeros(config.global_batch // world_size, *images.shape, device=device)
        with torch.no_grad():
            found = tuple(encode(blank)[0].shape[1:])
        if found != config.shape:
            raise ConfigError(
                f"{config.vae} encodes images of {config.size} pixels as latents of shape {list(found)}, data.shape is "
                f"{list(config.shape)}; set data.shape={list(found)}, or another data.size or data.vae"
            )

    def __iter__(self) -> Iterator[Batch]:
        cursor = StreamCursor(
            global_batch=self._config.global_batch, rank=self._rank, world_size=self._world_size
        )
        cursor.load_state_dict(self._images.state_dict())
        for batch, positions in zip(self._images, cursor.upcoming(), strict=False):
            with torch.no_grad():
                mean, deviation = self._encode(batch.x)
                x = posterior_sample(mean, deviation, self._config.scale, seed=self._seed, positions=positions)
            yield replace(batch, x=x)

    def state_dict(self) -> Mapping[str, int]:
        return self._images.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._images.load_state_dict(state)

    def take_skipped(self) -> Sequence[Skipped]:
        return self._images.take_skipped()

    def close(self) -> None:
        self._images.close()
