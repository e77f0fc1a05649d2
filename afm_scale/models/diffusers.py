"""Reads published autoencoders with diffusers. Imported only when one is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from ..core.errors import ConfigError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class ReadAutoencoder:
    network: nn.Module
    name: str  # the last part of the path or of the name it was asked for under
    weights: Path
    scale: float  # by which its config.json says latents are multiplied (`scaling_factor`)
    latent_channels: int
    pixels_per_latent: int  # of a side

    def shape_of_images(self, latents: tuple[int, int, int]) -> tuple[int, int, int]:
        """[C, H, W] of what latents of a shape [C, h, w] are decoded to. Raises ConfigError if it decodes no such."""
        channels, height, width = latents
        if channels != self.latent_channels:
            raise ConfigError(
                f"the autoencoder {self.name!r} has latents of {self.latent_channels} channels, the samples are "
                f"{list(latents)}; give the one that these latents were encoded with"
            )
        return 3, height * self.pixels_per_latent, width * self.pixels_per_latent


def read_autoencoder(path_or_name: str) -> ReadAutoencoder:
    """A folder as `save_pretrained` writes it, or a name on the hub if that can be reached.

    Weights are read from safetensors files alone. Raises ConfigError if there is no such autoencoder.
    """
    folder = Path(path_or_name)
    folder = folder if folder.is_dir() else _from_hub(path_or_name)
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} has no {' and no '.join(missing)}; wanted a folder of an AutoencoderKL with weights in "
            "safetensors, as diffusers' save_pretrained writes it"
        )
    try:
        network, loading = AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True,
            low_cpu_mem_usage=False,  # the other way asks for a further package
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(f"{folder} cannot be read as an AutoencoderKL: {error}; restore it") from error
    lacking, unknown = loading["missing_keys"], loading["unexpected_keys"]  # diffusers would fill in random numbers
    if lacking or unknown:
        raise ConfigError(
            f"{folder / WEIGHTS_NAME} does not fit {CONFIG_NAME} beside it: it lacks {sorted(lacking)[:3]} and has "
            f"{sorted(unknown)[:3]} too many; restore the folder"
        )
    config = network.config
    return ReadAutoencoder(
        network, Path(path_or_name).resolve().name, folder / WEIGHTS_NAME, scale=float(config.scaling_factor),
        latent_channels=config.latent_channels, pixels_per_latent=2 ** (len(config.block_out_channels) - 1),
    )


def _from_hub(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the autoencoder {name!r} is no folder here, and the hub did not give it ({reason}); give a local folder "
            f"that holds {CONFIG_NAME} and {WEIGHTS_NAME} of the published weights"
        ) from error
