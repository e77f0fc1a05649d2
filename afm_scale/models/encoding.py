"""The encoder that a source of images draws its latents with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.packages import require
from .autoencoder import Autoencoder


class EncoderConfig(Protocol):
    """What a source's configuration says of its encoder."""

    @property
    def vae(self) -> str: ...  # a folder that diffusers' AutoencoderKL loads, or a name that it knows

    @property
    def scale(self) -> float: ...

    @property
    def shift(self) -> float: ...  # taken off the encoder's latents before they are multiplied by the scale

    @property
    def precision(self) -> Literal["fp32", "bf16"]: ...

    @property
    def compile(self) -> bool | None: ...  # None: on a GPU


def build_encoder(config: EncoderConfig, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The autoencoder's `moments`.

    Raises ConfigError if diffusers or the autoencoder is not there, or if its own files say another shift.
    """
    require("diffusers", f"the autoencoder {config.vae}", "latents")
    from .diffusers import read_autoencoder

    found = read_autoencoder(config.vae)
    if found.shift != config.shift:
        raise ConfigError(
            f"data.shift is {config.shift}, the autoencoder {found.name!r} says {found.shift} (and a scale of "
            f"{found.scale}); set data.shift={found.shift} data.scale={found.scale}"
        )
    on_gpu = torch.device(device).type == "cuda"
    autoencoder = Autoencoder(
        found.network, scale=config.scale, shift=config.shift, precision=config.precision,
        compile=on_gpu if config.compile is None else config.compile,
    )
    return autoencoder.to(device).moments
