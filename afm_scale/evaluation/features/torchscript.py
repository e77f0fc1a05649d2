"""Features from TorchScript files: any network that maps images to vectors, and NVIDIA's file of Inception.

A TorchScript file is a program: torch's interpreter runs it with all rights of who started the command, it can write
over any file and never end. So it is read only if its SHA-256 is that of the published file, or one the user names.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.arithmetic import full_float32
from ...core.errors import ConfigError, DataError
from .extractor import (
    PUBLISHED,
    Features,
    InceptionConfig,
    TorchScriptConfig,
    check_uint8,
    with_channels,
)
from .weights_file import WeightsFile, read_published_file, read_weights_file


class TorchScriptInception:
    """pool [B, 2048] and logits [B, 1008] of NVIDIA's translation of the Inception network; no spatial features.

    The file resizes to 299 x 299 as TensorFlow 1 does it. It gives class probabilities, without the softmax's bias as
    in ADM's evaluation suite; logits are their logarithms. Pool and probabilities are two runs of the network. Grey
    images are repeated to three channels.
    """

    reads: Literal["images"] = "images"

    def __init__(self, config: InceptionConfig, device: torch.device) -> None:
        """Raises ConfigError if the file is missing, has another SHA-256 than named, or is no TorchScript."""
        file = read_published_file(config.weights, PUBLISHED["torchscript"], config.expected_sha256)
        _refuse_unnamed(file, config.expected_sha256, "{kind: inception, weights: FILE, sha256: ...}")
        self.name = f"inception via torchscript, weights {file.short_sha256}, TF1 resize to 299"
        self._network = _Network(file, device, f"wanted a file that is called as {PUBLISHED['torchscript'].name} is")

    def __call__(self, x: Tensor) -> Features:
        """x uint8 [B, 1 or 3, H, W]. Raises DataError for other numbers of channels."""
        check_uint8(x)
        images = with_channels(x, 3, "the Inception network")
        with full_float32(x.device):
            pool = self._network(images, return_features=True)
            probabilities = self._network(images, no_output_bias=True)
        smallest = torch.finfo(probabilities.dtype).tiny  # what has underflowed to 0 has no logarithm
        return Features(pool, logits=probabilities.clamp(min=smallest).log())


class TorchScriptFeatures:
    """pool [B, D] of any TorchScript file, of images prepared as its configuration says."""

    reads: Literal["images"] = "images"

    def __init__(self, config: TorchScriptConfig, device: torch.device) -> None:
        """Raises ConfigError if the file is missing, has another SHA-256 than named, or is no TorchScript."""
        file = read_weights_file(config.file, setting="file")
        _refuse_unnamed(file, config.sha256, "{kind: torchscript, file: FILE, sha256: ...}")
        self.name = f"torchscript {file.short_sha256}, {_preparation(config)}"
        self._config = config
        self._network = _Network(file, device, "set channels, size and input to what it wants")

    def __call__(self, x: Tensor) -> Features:
        """x uint8 [B, C, H, W]. Raises DataError if the network refuses the images or returns no matrix [B, D]."""
        check_uint8(x)
        with full_float32(x.device):
            return Features(self._network(self._prepared(x)))

    def _prepared(self, images: Tensor) -> Tensor:
        config = self._config
        images = with_channels(images, config.channels, str(config.file))
        if config.size is not None and tuple(images.shape[-2:]) != (config.size, config.size):
            side = (config.size, config.size)
            images = F.interpolate(images.to(torch.float32), side, mode="bilinear", antialias=True)
        if config.input == "uint8":
            return images if images.dtype == torch.uint8 else images.round().to(torch.uint8)
        images = images.to(torch.float32) / 255
        if config.mean is None or config.std is None:
            return images
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (config.mean, config.std))
        return (images - mean) / std


def _refuse_unnamed(file: WeightsFile, named: str | None, example: str) -> None:
    """Before anything in the file is parsed."""
    if file.sha256 in (named, PUBLISHED["torchscript"].sha256):
        return
    found = "none is named" if named is None else f"the settings name {named}"
    raise ConfigError(
        f"{file.path} is not run: a TorchScript file is a program, and would have all your rights. Its SHA-256 is "
        f"{file.sha256}, {found}; if you trust who made it, name this number in the settings of the features: {example}"
    )


def _preparation(config: TorchScriptConfig) -> str:
    size = "size as it is" if config.size is None else f"bilinear resize to {config.size}"
    normalised = "" if config.mean is None or config.std is None else (
        f", mean {list(config.mean)}, std {list(config.std)}"
    )
    return f"{config.channels} channels, {size}, input {config.input}{normalised}"


class _Network:
    """A TorchScript file as a function of images to a matrix of floats; `advice` to who has given an unsuitable one."""

    def __init__(self, file: WeightsFile, device: torch.device, advice: str) -> None:
        self._path = file.path
        self._advice = advice
        try:
            with warnings.catch_warnings():
                # torch has deprecated TorchScript, which is the form these files are published in.
                warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated", category=DeprecationWarning)
                module = torch.jit.load(io.BytesIO(file.content), map_location=device)
        except RuntimeError as error:
            raise ConfigError(
                f"{file.path} cannot be read as a TorchScript file ({textwrap.shorten(str(error), 200)}); is it torn, "
                "or a state dict?"
            ) from error
        self._module = module.eval()

    def __call__(self, images: Tensor, **options: bool) -> Tensor:
        """[B, D], float64 if the network says so, else float32."""
        try:
            # Without the optimiser, which recompiles after the first batches, all batches get the same arithmetic.
            with torch.jit.optimized_execution(False):
                output: Any = self._module(images, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(
                f"{self._path} does not take {images.dtype} images {list(images.shape)} ({reason}); {self._advice}"
            ) from error
        if not (isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(images)
                and output.is_floating_point()):
            found = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise DataError(
                f"{self._path} returns {found} for {len(images)} images; wanted one vector of floats for each, [B, D]"
            )
        return output if output.dtype == torch.float64 else output.to(torch.float32)
