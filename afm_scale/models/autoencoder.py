"""The frozen autoencoder between pixels and latents."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Autoencoder(nn.Module):
    """Wraps a network with the interface of diffusers' AutoencoderKL: `encoder`, `encode` and `decode`.

    The weights are float32 and do not learn. Encoding computes in `precision`; decoding always in float32.
    """

    def __init__(
        self, network: nn.Module, *, scale: float, shift: float = 0.0, precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
    ) -> None:
        """A training latent is scale * (the encoder's - shift), as diffusers' pipelines of SD3 and FLUX have it."""
        super().__init__()
        self.network = network.float().requires_grad_(False).eval()
        self.scale, self.shift = scale, shift
        self._dtype = PRECISIONS[precision]
        if compile:
            network.encoder.compile(dynamic=False)  # the batch is always of one shape

    def train(self, mode: bool = True) -> Autoencoder:
        """Stays in evaluation mode, whatever the module it is part of does."""
        return super().train(False)

    @torch.no_grad()
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, S, S] in [-1, 1] -> mean and standard deviation of the posterior, [B, C, h, w] float32.

        The shift is taken off the mean, so that what is stored of them, and drawn from it, need not know of it.
        """
        with torch.autocast(x.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            posterior = self.network.encode(x).latent_dist
        return posterior.mean.float() - self.shift, torch.exp(0.5 * posterior.logvar.float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] -> pixels [B, 3, S, S] float32, in [-1, 1] but for overshoot."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.network.decode(latents.float() / self.scale + self.shift).sample
