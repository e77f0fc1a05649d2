"""The decoder between the latents that a model draws and the pictures that are looked at or measured, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.arithmetic import full_float32

AT_ONCE = 8  # latents; always as many, so that the rounding of an image does not depend on what else was asked for


class Decodes(Protocol):
    """An autoencoder, as far as drawing knows it."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, c, h, w] as training sees them to pixels [B, C, H, W] in [-1, 1], but for overshoot."""
        ...


@dataclass(frozen=True)
class Decoder:
    """A `sampling.sampler.Decode` from latents [B, c, h, w] to pixels [B, C, H, W] in [-1, 1], but for overshoot."""

    autoencoder: Decodes
    name: str
    shape: tuple[int, int, int]  # [C, H, W] of the images

    def __call__(self, latents: Tensor) -> Tensor:
        with full_float32(latents.device):
            return torch.cat([self.autoencoder.decode(part) for part in latents.split(AT_ONCE)])
