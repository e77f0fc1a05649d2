"""Features, by which sets of images are compared: what an extractor is, how each kind is configured, and pixels.

The other kinds are in modules of their own, chosen by run/features.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from ...core.errors import ConfigError, DataError
from ...core.ranges import Range, Share
from .weights_file import PublishedFile

Route = Literal["torch-fidelity", "torchscript"]

PUBLISHED: dict[Route, PublishedFile] = {
    "torch-fidelity": PublishedFile(
        name="weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        origin="release v0.2.0 of torch-fidelity, 95,628,359 bytes",
    ),
    "torchscript": PublishedFile(
        name="inception-2015-12-05.pt",
        sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        origin="NVIDIA's StyleGAN metrics",
    ),
}
_ROUTES: dict[str, Route] = {".pth": "torch-fidelity", ".pt": "torchscript"}
_MAX_PIXELS = 16_384  # numbers per image: a covariance of 2 GiB


def _check_sha256(digits: str | None, other: str = "") -> None:
    if digits is not None and not re.fullmatch("[0-9a-f]{64}", digits):
        raise ConfigError(f"sha256 {digits!r} is neither {other}null nor 64 hex digits in lower case")


@dataclass(frozen=True, slots=True)
class Features:
    """What an extractor says of B images or samples."""

    pool: Tensor  # [B, D] float32 or float64: Frechet distance, precision and recall
    spatial: Tensor | None = None  # [B, S]: the Frechet distance that sees where things are (sFID)
    logits: Tensor | None = None  # [B, K]: softmax over K gives p(class | image), for the inception score


class Extractor(Protocol):
    """A network, or none, that turns a batch on its device into features, without a graph and in eval mode.

    `name` says network, weights (the first 16 hex digits of a SHA-256) and preprocessing: the features of two sets are
    comparable only if the names are equal. `reads` says what it is called with: images, uint8 [B, C, H, W]; or samples,
    float [B, C, H, W] in the generator's own space (pixels in [-1, 1], or latents).
    """

    name: str
    reads: Literal["images", "samples"]

    def __call__(self, x: Tensor) -> Features: ...


@dataclass(frozen=True, kw_only=True)
class InceptionConfig:
    """The Inception network of 2015 that published FIDs come from, read from a local file in one of two forms.

    `via` torch-fidelity is its state dict (.pth): pool, spatial features (sFID) and logits. `via` torchscript is
    NVIDIA's TorchScript file (.pt): pool and logits, no spatial features. Null: by the suffix. Both are translations
    of one TensorFlow graph; the extractor's name says which of the two it was.
    """

    kind: Literal["inception"] = "inception"
    weights: Path = Path("weights") / PUBLISHED["torch-fidelity"].name  # one of the two published files
    via: Route | None = None  # in which form; null: by the suffix
    sha256: str | None = "published"  # what the file must have; 'published': the one everybody uses; null: any .pth

    def __post_init__(self) -> None:
        if self.via is None and self.weights.suffix not in _ROUTES:
            raise ConfigError(
                f"weights {self.weights} ends neither in .pth (torch-fidelity) nor in .pt (TorchScript); say which it "
                "is: via=torch-fidelity or via=torchscript"
            )
        if self.sha256 != "published":
            _check_sha256(self.sha256, "'published' nor ")

    @property
    def route(self) -> Route:
        return self.via or _ROUTES[self.weights.suffix]

    @property
    def expected_sha256(self) -> str | None:
        return PUBLISHED[self.route].sha256 if self.sha256 == "published" else self.sha256


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """The pixels themselves, for small images: up to 16,384 numbers each."""

    kind: Literal["pixels"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class TorchScriptConfig:
    """Any TorchScript file that maps images [B, channels, H, W] to features [B, D], DINOv2 for instance."""

    file: Path  # a program: see docs/evaluation.md
    kind: Literal["torchscript"] = "torchscript"
    channels: Annotated[int, Range(1, 1_024)] = 3  # what the network takes; grey images are repeated to as many
    # pixels of a side, to which images are resized (bilinear, antialiased); null: as they are
    size: Annotated[int, Range(1, 16_384)] | None = None
    input: Literal["unit", "uint8"] = "unit"  # floats in [0, 1], normalised next; or whole numbers 0 to 255
    sha256: str | None = None  # of the file, which is a program: it is not run unless its 64 hex digits are named
    # one, or one for each channel; with std: (x - mean) / std
    mean: Annotated[tuple[float, ...], Range(-1e6, 1e6)] | None = None
    std: Annotated[tuple[float, ...], Range(above=0, high=1e6)] | None = None  # as many

    def __post_init__(self) -> None:
        _check_sha256(self.sha256)
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std go together: give both or neither")
        if self.mean is None or self.std is None:
            return
        if self.input == "uint8":
            raise ConfigError("a network with input 'uint8' normalises by itself; leave out mean and std")
        if not {len(self.mean), len(self.std)} <= {1, self.channels}:
            raise ConfigError(
                f"mean {list(self.mean)} and std {list(self.std)} must have 1 or {self.channels} (channels) numbers "
                "each"
            )


@dataclass(frozen=True, kw_only=True)
class ClassifierFeaturesConfig:
    """What a classifier of ours sees: a checkpoint (or a run's folder) of objective 'classification', its average.

    It reads samples, so the latents of a latent model are judged without being decoded.
    """

    checkpoint: Path  # of a classifier
    kind: Literal["classifier"] = "classifier"
    time: Share = 0.0  # what the classifier is told of the noise in the samples: none


FeaturesConfig = InceptionConfig | PixelsConfig | TorchScriptConfig | ClassifierFeaturesConfig


class PixelFeatures:
    """The pixels of an image, scaled to [-1, 1], as one vector [C * H * W] float32."""

    name = "pixels in [-1, 1]"
    reads: Literal["images"] = "images"

    def __call__(self, x: Tensor) -> Features:
        """Raises DataError for images so large that the covariance of their pixels would be out of reach."""
        check_uint8(x)
        num_pixels = x[0].numel()
        if num_pixels > _MAX_PIXELS:
            raise DataError(
                f"features 'pixels' are for images of up to {_MAX_PIXELS:,} numbers, found {list(x.shape[1:])}: the "
                f"covariance of {num_pixels:,} would take {8 * num_pixels**2 / 2**30:,.0f} GiB; use 'inception'"
            )
        return Features(x.flatten(1).to(torch.float32) / 127.5 - 1)


def check_uint8(images: Tensor) -> None:
    assert images.dtype == torch.uint8 and images.ndim == 4, (images.dtype, images.shape)


def with_channels(images: Tensor, num_channels: int, wanted_by: str) -> Tensor:
    """images [B, C, H, W] with grey ones (C = 1) repeated. Raises DataError if C is neither 1 nor `num_channels`."""
    found = images.shape[1]
    if found not in (1, num_channels):
        wanted = "1 channel" if num_channels == 1 else f"{num_channels} channels, or grey ones"
        raise DataError(
            f"{wanted_by} takes images of {wanted}, found {found} channels; latents have to be decoded first, "
            "and an alpha channel removed"
        )
    return images.expand(-1, num_channels, -1, -1)
