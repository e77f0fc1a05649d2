"""A tiny random AutoencoderKL: 16 x 16 pixels to latents of 4 x 8 x 8."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL


def small_autoencoder(seed: int = 0) -> AutoencoderKL:
    """Its deviations vary from element to element, and matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, sample_size=16,
        )
    return network.eval()


def saved_autoencoder(folder: Path, seed: int = 0) -> Path:
    small_autoencoder(seed).save_pretrained(folder, safe_serialization=True)
    return folder
