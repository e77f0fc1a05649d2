"""What every source of images shares: the order, the mirroring of each draw, and substitutes for broken samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.random import KeyedDraws, Positions
from ..core.ranges import Range
from ..core.types import Batch
from .affine import AffineConfig
from .description import DESCRIPTION_NAME, ImageContent, Kind, check_content, read_content
from .order import EpochOrder, StreamCursor
from .shards import PackedShards, SampleError
from .source import Needs, Skipped, SourceConfig, filled
from .transforms import ImageError, decode_checked

T = TypeVar("T")
_ATTEMPTS = 1000
_SIZE_OF_ORIGINALS = 256  # what images of many sizes are cropped to, unless `size` says otherwise


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(SourceConfig):
    """Images of a folder packed by tools/make_shards.py, as pixels in [-1, 1].

    What is left out of `size`, `num_classes` and `channels`, `resolved` reads from the folder's dataset.json; what is
    given is compared with it when the source is built.
    """

    folder: Path  # of the packed images, with its dataset.json
    # pixels of a side; null: as packed, or 256 of originals of any size
    size: Annotated[int, Range(1, 16_384)] | None = None
    num_classes: Annotated[int, Range(1, 10_000_000)] | None = None  # null: as packed
    channels: Literal[1, 3] | None = None  # 1: grey, of a set packed with --grey; null: as packed, or 3
    mirror: bool = True  # every draw left to right or right to left, evenly likely
    affine: AffineConfig | None = None  # turned, shifted and enlarged before the crop; null: never
    on_error: Literal["stop", "skip"] = "stop"  # a sample that cannot be read: end the run, or use another one
    workers: Annotated[int, Range(1, 1_024)] = 4  # per rank: processes (webdataset) or threads (dali) that decode
    prefetch: Annotated[int, Range(1, 1_024)] = 2  # batches that every worker reads ahead

    def resolved(self) -> ImagesConfig:
        if self.size is not None and self.num_classes is not None:
            return self
        description = read_content(self.folder, "images")
        size = description.content.size or _SIZE_OF_ORIGINALS
        return filled(self, size=size, num_classes=description.num_classes, channels=description.content.channels)

    def fingerprint(self) -> Mapping[str, str]:
        return read_content(self.folder, "images").fingerprint()

    @property
    def shape(self) -> tuple[int, int, int]:
        assert self.size is not None, "the size is as packed: resolved() comes first"
        return (self.channels or 3, self.size, self.size)


@dataclass(frozen=True, kw_only=True)
class WebDatasetConfig(ImagesConfig):
    """Decoded by Pillow on the CPU, in worker processes."""

    kind: Literal["webdataset"] = "webdataset"

    @property
    def starts_processes(self) -> bool:
        return True

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        return "Pillow, in worker processes"


@dataclass(frozen=True, kw_only=True)
class DaliConfig(ImagesConfig):
    """Decoded by NVIDIA DALI: nvJPEG where there is a GPU, its CPU pipeline elsewhere.

    It stands here because the module of the source needs the package.
    """

    needs: ClassVar[Needs] = Needs("nvidia.dali", "dali")
    kind: Literal["dali"] = "dali"

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        return "nvJPEG, on the GPU" if on_gpu else "its CPU pipeline"

    def __post_init__(self) -> None:
        if self.affine is not None:
            raise ConfigError(
                "affine is set, but images that DALI decodes cannot be turned and shifted; set kind: webdataset (of "
                "images_to_latents, decoder: webdataset), or leave it out (affine: null)"
            )


def open_shards(
    folder: Path, *, kind: Kind, num_classes: int | None, on_error: str, check: bool
) -> PackedShards:
    """The packed data set that a source wants. Raises DataError if it is another kind, is damaged, or has other labels.
    With None in the place of `num_classes` it may have any.

    With `check` (one rank is enough) sizes and indices are compared too; shards that are missing or truncated are
    tolerated if errors are to be skipped.
    """
    shards = PackedShards(folder)
    description = shards.description
    check_content(folder, description, kind)
    if num_classes not in (None, description.num_classes):
        raise DataError(
            f"{folder} has {description.num_classes} classes, data.num_classes is {num_classes}; "
            f"set data.num_classes={description.num_classes}"
        )
    if check and on_error == "stop":
        shards.refuse_damage("restore it, pack again, or set data.on_error=skip")
    elif check:
        shards.check()  # damaged shards are skipped sample by sample; a foreign index is an error all the same
    return shards


def read_or_substitute(
    shards: PackedShards, sample: int, read: Callable[[int], T], *, seed: int, on_error: str
) -> tuple[int, T, list[Skipped]]:
    """(the sample used, what `read` made of it, what was skipped on the way).

    With `on_error` "skip" a sample that `read` refuses with SampleError is replaced by another of the data set, chosen
    by (seed, sample) alone: the same on every run, whichever rank or worker it falls to. The substitute is then seen
    twice in that epoch, and every batch keeps its size.
    """
    refused: list[SampleError] = []
    used = sample
    while True:
        try:
            value = read(used)
            break
        except SampleError as error:
            if on_error == "stop":
                raise
            refused.append(error)
            if len(refused) == _ATTEMPTS:
                raise DataError(f"{_ATTEMPTS} samples in a row cannot be read, the last: {error}") from None
        digest = blake2b(repr(("substitute", seed, sample, len(refused))).encode(), digest_size=8).digest()
        used = int.from_bytes(digest, "little") % shards.num_samples
    substitute = shards.place(used) if refused else ""
    return used, value, [Skipped(error.place, error.reason, substitute) for error in refused]


def decoded_image(shards: PackedShards, sample: int, data: bytes) -> Image.Image:
    """The image of a sample's bytes, decoded to its last pixel; of the size that the set has.

    Raises SampleError.
    """
    content = shards.description.content
    size = content.size
    try:
        image = decode_checked(data)
    except ImageError as error:
        raise SampleError(shards.place(sample), error.reason) from None
    if size is not None and image.size != (size, size):
        raise SampleError(
            shards.place(sample), f"is of {image.width} x {image.height} pixels, {DESCRIPTION_NAME} says {size}"
        )
    if content.channels == 1 and image.mode != "L":
        raise SampleError(shards.place(sample), f"has pixels of mode {image.mode}, {DESCRIPTION_NAME} says grey")
    return image


def mirrored_at(positions: Positions, *, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """[B] bool: whether the draw at a stream position is of the mirror image."""
    return KeyedDraws("mirror", seed, positions=positions, device=device).uniform("mirror") < 0.5


class ImageSource(ABC):
    """A `DataSource` of images; subclasses decode them, in other processes or threads and ahead of time."""

    def __init__(
        self, config: ImagesConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        """Raises ConfigError or DataError if the data set does not fit the configuration."""
        self.shape, self.num_classes = config.shape, config.num_classes
        self.config = config
        self.seed = seed
        self.device = torch.device(device)
        self.cursor = StreamCursor(global_batch=config.global_batch, rank=rank, world_size=world_size)
        self.shards = open_shards(
            config.folder, kind="images", num_classes=config.num_classes, on_error=config.on_error, check=rank == 0
        )
        content = self.shards.description.content
        assert isinstance(content, ImageContent)
        if content.size is not None and content.size != config.size:
            raise DataError(
                f"{config.folder} holds images of {content.size} pixels, data.size is {config.size}; "
                f"set data.size={content.size}, or pack with --size {config.size}"
            )
        if content.channels != self.shape[0]:
            raise DataError(
                f"{config.folder} holds images of {content.channels} channel(s), data.channels is {self.shape[0]}; set "
                f"data.channels={content.channels}, or pack {'without' if content.channels == 1 else 'with'} --grey"
            )
        self.order = EpochOrder(self.shards.num_samples, seed=seed)
        self._skipped: list[Skipped] = []

    @abstractmethod
    def decoded(self) -> Iterator[tuple[Tensor, Tensor, Sequence[Skipped]]]:
        """This rank's turns from the cursor on: (uint8 [B, 3, H, W] or the like on any device, int64 [B], skipped).

        It may run ahead, and must leave `self.cursor` alone: `__iter__` moves it when a batch is handed out.
        """

    def __iter__(self) -> Iterator[Batch]:
        for pixels, labels, skipped in self.decoded():
            positions = self.cursor.take()
            self._skipped.extend(skipped)
            yield self._batch(pixels, labels, positions)

    def _batch(self, pixels: Tensor, labels: Tensor, positions: Positions) -> Batch:
        pixels = pixels[:, :self.shape[0]]  # of grey images all three are the same
        x = pixels.to(self.device, non_blocking=True).to(torch.float32) / 127.5 - 1
        if self.config.mirror:
            mirrored = mirrored_at(positions, seed=self.seed, device=self.device)
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        return Batch(x, labels.to(self.device, non_blocking=True))

    def state_dict(self) -> dict[str, int]:
        return self.cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Before iteration: what has been read ahead belongs to the old position."""
        self.cursor.load_state_dict(state)

    def take_skipped(self) -> Sequence[Skipped]:
        taken, self._skipped = self._skipped, []
        return taken

    @abstractmethod
    def close(self) -> None: ...
