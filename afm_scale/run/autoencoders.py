"""The autoencoders of latent models: what decodes their samples, and encodes pictures that are to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint.card import Latents
from ..core.arithmetic import full_float32
from ..core.errors import ConfigError
from ..core.packages import require
from ..core.random import Positions
from ..data.latents import posterior_sample
from ..data.source import SourceConfig
from ..models.autoencoder import Autoencoder
from ..sampling.decoding import AT_ONCE, Decoder

if TYPE_CHECKING:
    from ..models.diffusers import ReadAutoencoder  # which needs an optional package


@dataclass(frozen=True)
class Encoder:
    """Pixels [B, C, H, W] in [-1, 1] to latents as training sees them."""

    autoencoder: Autoencoder
    name: str

    def __call__(self, pixels: Tensor, positions: Positions) -> Tensor:
        """Posterior samples [B, c, h, w]; their noise is keyed by the positions of the images."""
        with full_float32(pixels.device):
            moments = [self.autoencoder.moments(part) for part in pixels.split(AT_ONCE)]
        mean, deviation = (torch.cat(parts) for parts in zip(*moments, strict=True))
        return posterior_sample(mean, deviation, self.autoencoder.scale, seed=0, positions=positions)


def decoder_of(
    data: SourceConfig, vae: str | None, device: torch.device, *, setting: str, otherwise: str = ""
) -> Decoder | None:
    """What decodes the samples of a model trained on this data; None if they are pixels.

    Args:
        vae: a folder or a name that is wanted instead of the one that the data names.
        setting: how a user says so.
        otherwise: what else a user may do, for the message.

    Raises ConfigError if there is no such autoencoder, or it is of other latents.
    """
    return decoder_of_latents(
        latents_of(data), data.shape, data.kind, vae, device, setting=setting, otherwise=otherwise
    )


def latents_of(data: SourceConfig) -> Latents | None:
    """What the samples of a model trained on this data are of; None if they are pixels."""
    if not data.draws_latents:
        return None
    return Latents(vae=None, scale=None) if data.encoding is None else Latents(**data.encoding._asdict())


def decoder_of_latents(
    latents: Latents | None, shape: tuple[int, int, int], kind: str, vae: str | None, device: torch.device, *,
    setting: str, otherwise: str = "",
) -> Decoder | None:
    """The same, of what a checkpoint's card says: latents, the shape [C, h, w] of a sample, the kind of the data."""
    if latents is None:
        if vae is not None:
            raise ConfigError(f"{setting} {vae}: this model draws pixels (data.kind {kind!r}); leave it out")
        return None
    known = latents.vae
    if vae is None and (known is None or not Path(known).is_dir()):
        which = "an autoencoder" if known is None else f"the autoencoder {known!r}, which is no folder here"
        raise ConfigError(
            f"this model draws latents, and to make images of them needs {which}: give its folder (or a name on the "
            f"hub) with {setting}{otherwise}"
        )
    found = _read(vae or known)
    scale, shift = (found.scale, found.shift) if latents.scale is None else (latents.scale, latents.shift)
    autoencoder = Autoencoder(found.network, scale=scale, shift=shift).to(device)
    return Decoder(autoencoder, found.name, found.shape_of_images(shape))


def encoder_of(vae: str, device: torch.device) -> Encoder:
    """An autoencoder that latents are made with, scaled and shifted as its files say. Raises ConfigError as above."""
    found = _read(vae)
    return Encoder(Autoencoder(found.network, scale=found.scale, shift=found.shift).to(device), found.name)


def _read(vae: str) -> ReadAutoencoder:
    require("diffusers", f"the autoencoder {vae}", "latents")
    from ..models.diffusers import read_autoencoder

    return read_autoencoder(vae)
