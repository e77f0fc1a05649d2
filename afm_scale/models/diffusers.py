"""Autoencoders and transformers of diffusers: all that is taken from it. Imported only when one is named."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import diffusers
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from ..core.errors import ConfigError
from ..core.ranges import Range
from ..core.strict_json import read_mapping
from ..core.typed import build, nearest
from ..core.weights import first_misfit
from .weights_file import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, read_safetensors


@contextmanager
def _only_errors(*names: str) -> Iterator[None]:
    """Of these loggers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _of_diffusers(name: str) -> Any:
    """A class, whose module diffusers imports now; None if there is none."""
    with _only_errors("diffusers", "torchao", "torch.utils._pytree"):  # which tell of a torchao for other machines
        return getattr(diffusers, name, None)


_IMPOSSIBLE = (OSError, ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """What config.json may say, as diffusers' AutoencoderKL has it, and how far a network can be built of it."""

    in_channels: Annotated[int, Range(1, 16)] = 3
    out_channels: Annotated[int, Range(1, 16)] = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[tuple[int, ...], Range(1, 8192)] = (64,)
    layers_per_block: Annotated[int, Range(1, 16)] = 1
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    latent_channels: Annotated[int, Range(1, 1024)] = 4
    norm_num_groups: Annotated[int, Range(1, 1024)] = 32
    sample_size: Annotated[int, Range(1, 2**16)] = 32
    scaling_factor: Annotated[float, Range(above=0, high=2**20)] = 0.18215
    shift_factor: Annotated[float, Range(-(2**20), 2**20)] | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        depths = {len(self.block_out_channels), len(self.down_block_types), len(self.up_block_types)}
        if len(depths) > 1 or not 1 <= max(depths) <= 8:
            raise ConfigError("block_out_channels, down_block_types and up_block_types must be of one length, 1 to 8")
        if self.latents_mean is not None or self.latents_std is not None:
            raise ConfigError(
                "latents_mean and latents_std, by which latents are normalised channel by channel, are not read; "
                "wanted an autoencoder of scaling_factor and shift_factor alone"
            )


@dataclass(frozen=True)
class ReadAutoencoder:
    network: nn.Module
    name: str  # the last part of the path or of the name it was asked for under
    weights: Path
    scale: float  # by which its config.json says latents are multiplied (`scaling_factor`)
    shift: float  # what is taken off them before (`shift_factor`)
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

    Weights are read from safetensors files alone, and no larger network is built than they fill. Raises ConfigError if
    there is no such autoencoder, or anything in its two files cannot be.
    """
    folder = Path(path_or_name)
    folder = folder if folder.is_dir() else _from_hub(path_or_name)
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).exists()]
    if missing:
        raise ConfigError(
            f"{folder} has no {' and no '.join(missing)}; wanted a folder of an AutoencoderKL with weights in "
            "safetensors, as diffusers' save_pretrained writes it"
        )
    settings = _settings(folder)
    _check_weights(folder, settings)
    try:
        network, loading = _of_diffusers("AutoencoderKL").from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True,
            low_cpu_mem_usage=False,  # the other way asks for a further package
        )
    except _IMPOSSIBLE as error:
        raise ConfigError(f"{folder} cannot be read as an AutoencoderKL: {error}; restore it") from error
    lacking, unknown = loading["missing_keys"], loading["unexpected_keys"]  # diffusers would fill in random numbers
    if lacking or unknown:
        raise ConfigError(
            f"{folder / WEIGHTS_NAME} does not fit {CONFIG_NAME} beside it: it lacks {sorted(lacking)[:3]} and has "
            f"{sorted(unknown)[:3]} too many; restore the folder"
        )
    return ReadAutoencoder(
        network, Path(path_or_name).resolve().name, folder / WEIGHTS_NAME, scale=settings.scaling_factor,
        shift=settings.shift_factor or 0.0, latent_channels=settings.latent_channels,
        pixels_per_latent=2 ** (len(settings.block_out_channels) - 1),
    )


def pipeline_of(name: str, **components: Any) -> Any:
    """A pipeline of diffusers by its class, with these components and none in the place of the others."""
    kind = _of_diffusers(name)
    missing = kind._get_signature_keys(kind)[0] - components.keys()
    return kind(**dict.fromkeys(missing), **components)


def _settings(folder: Path) -> AutoencoderSettings:
    path = folder / CONFIG_NAME
    if (folder / INDEX_NAME).exists():  # would lead diffusers to other files
        raise ConfigError(f"{folder} has a {INDEX_NAME}; wanted weights in one file, as save_pretrained writes them")
    try:
        plain = read_mapping(path, 2**20)
        if plain.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
            raise ValueError("it does not describe an AutoencoderKL")
        return build(AutoencoderSettings, {key: value for key, value in plain.items() if not key.startswith("_")})
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; restore it") from error
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{path} cannot be used: {error}; restore it") from error


def _check_weights(folder: Path, settings: AutoencoderSettings) -> None:
    """Before a network is built that takes memory: whether there are as many numbers in the file, and they are good."""
    path = folder / WEIGHTS_NAME
    try:
        given = read_safetensors(path)
        with torch.device("meta"):
            wanted = _of_diffusers("AutoencoderKL")(**asdict(settings)).state_dict()
    except _IMPOSSIBLE as error:
        raise ConfigError(f"{folder} cannot be read as an AutoencoderKL: {error}; restore it") from error
    misfit = first_misfit(given, None)  # names are diffusers' matter, which knows older ones
    if misfit is not None:
        raise ConfigError(f"{path}: {misfit}; restore it")
    found, needed = (sum(value.numel() for value in tensors.values()) for tensors in (given, wanted))
    if found > 2 * needed or needed > 2 * found:
        raise ConfigError(f"{path} holds {found:,} numbers, {CONFIG_NAME} beside it describes {needed:,}; restore it")


def _from_hub(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the autoencoder {name!r} is no folder here, and the hub did not give it ({reason}); give a local folder "
            f"that holds {CONFIG_NAME} and {WEIGHTS_NAME} of the published weights"
        ) from error


def transformer_class(name: str) -> type[nn.Module]:
    """The transformer of this name. Raises ConfigError if diffusers has none, or if it is something else."""
    found = _of_diffusers(name) if name.isidentifier() and not name.startswith("_") else None
    if found is None:
        known = [known for known in dir(diffusers) if "Transformer" in known and "Model" in known]
        raise ConfigError(
            f"class_name {name!r} is no class of diffusers {diffusers.__version__}{nearest(name, known)}; give one "
            "such as QwenImageTransformer2DModel"
        )
    is_model = isinstance(found, type) and issubclass(found, _of_diffusers("ModelMixin"))
    if not is_model or not found.__module__.startswith("diffusers.models.transformers."):
        raise ConfigError(
            f"class_name {name!r} is something else than a transformer in diffusers; give one such as "
            "QwenImageTransformer2DModel"
        )
    return found


def settings_of(class_name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that a transformer's constructor is told: what is given, and its defaults. Raises ConfigError for others."""
    parameters = inspect.signature(transformer_class(class_name).__init__).parameters
    known = [name for name in parameters if name != "self"]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"config: {class_name} has no setting {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            )
    needed = [name for name in known if name not in given and parameters[name].default is inspect.Parameter.empty]
    if needed:
        raise ConfigError(f"config: {class_name} needs {', '.join(needed)}; there is no default")
    return {name: given.get(name, parameters[name].default) for name in known}


def build_transformer(class_name: str, settings: Mapping[str, Any]) -> nn.Module:
    """Where torch's default device is. Raises ConfigError if the class refuses the settings."""
    try:
        return transformer_class(class_name)(**settings)
    except (AssertionError, *_IMPOSSIBLE) as error:
        reason = f"{type(error).__name__} {str(error)[:200]}".strip()
        raise ConfigError(f"config: {class_name} cannot be built so ({reason}); correct its settings") from error


def block_classes(transformer: nn.Module) -> list[str]:
    """Names of the classes of its blocks: those that it says are repeated, or must not be split."""
    return list(transformer._repeated_blocks or transformer._no_split_modules or ())
