"""Handwritten digits of 28x28 pixels, from a file that the user has: there is no download.

The file is an .npz with `images` [N, 28, 28] uint8 and `labels` [N] of whole numbers from 0 to 9. The place of an image
in the file decides its part, whatever the seed: of every ten in a row the first eight are for training (`train`), the
ninth is for choosing settings (`tune`), the tenth is for the figures that are reported (`test`). So 10,000 images are
8,000, 1,000 and 1,000, and each part has the classes in the shares of the file if those are mixed, or lie in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError, DataError
from ...core.random import Positions
from ...core.types import Batch
from ..description import file_sha256
from ..npz import Npz
from ..order import EpochOrder, HeldOut, PositionedSource
from ..source import SourceConfig

NUM_CLASSES = 10
SHAPE = (1, 28, 28)
Part = Literal["train", "tune", "test"]
_OF_TEN: dict[Part, tuple[int, ...]] = {"train": tuple(range(8)), "tune": (8,), "test": (9,)}
_WANTED = "wanted an .npz with images [N, 28, 28] uint8 and labels [N] of whole numbers from 0 to 9, at least ten"


@dataclass(frozen=True, kw_only=True)
class MnistConfig(SourceConfig):
    """Digits of 28x28 pixels from a file of one's own: npz with `images` and `labels`."""

    positioned: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int, int]] = SHAPE
    num_classes: ClassVar[int] = NUM_CLASSES
    kind: Literal["mnist"] = "mnist"
    file: Path | None = None  # must be given to train; null: what a recipe leaves to its user
    part: Part = "train"  # of every ten images eight train, one is to tune settings on, one to state figures of

    def fingerprint(self) -> dict[str, str]:
        if self.file is None:
            return {}
        try:
            return {"file": file_sha256(self.file)}
        except OSError as error:
            raise DataError(f"data.file {self.file} cannot be read ({error.strerror or error}); {_WANTED}") from None

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        return "data.file, read whole into memory"


@cache
def read_mnist(file: Path, part: Part) -> Batch:
    """The images and labels of one part, in the file's order.

    Returns x [n, 1, 28, 28] float32 in [-1, 1] and y [n] int64 on the CPU; shared, not to be written to. Raises
    DataError if the file is missing or holds anything else.
    """
    images, labels = _arrays(file)
    of_ten = torch.arange(len(labels)) % 10
    chosen = torch.isin(of_ten, torch.tensor(_OF_TEN[part]))
    return Batch(images[chosen].unsqueeze(1).to(torch.float32) / 127.5 - 1, labels[chosen])


def _arrays(file: Path) -> tuple[Tensor, Tensor]:
    """(uint8 [N, 28, 28], int64 [N]), checked."""
    if not file.exists():
        raise DataError(f"data.file {file} is not there; {_WANTED}")
    try:
        npz = Npz(file)
        images, labels = npz.read("images"), npz.read("labels")
    except DataError as error:
        raise DataError(f"data.file {error}; {_WANTED}") from None
    fits = images.dtype == np.uint8 and images.ndim == 3 and images.shape[1:] == SHAPE[1:]
    if not (fits and labels.dtype.kind in "iu" and labels.shape == images.shape[:1] and len(labels) >= 10):
        raise DataError(
            f"data.file {file} holds images {list(images.shape)} {images.dtype} and labels {list(labels.shape)} "
            f"{labels.dtype}; {_WANTED}"
        )
    wrong = labels[(labels < 0) | (labels >= NUM_CLASSES)]
    if len(wrong):
        raise DataError(f"data.file {file} has the label {wrong[0]}; {_WANTED}")
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


class MnistSource(PositionedSource):
    """The images of one part, every one once per epoch, in an order that depends on the seed and the epoch alone."""

    shape = SHAPE
    num_classes = NUM_CLASSES

    def __init__(
        self, config: MnistConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        """Raises ConfigError if no file is given, DataError if it cannot be used."""
        super().__init__(global_batch=config.global_batch, rank=rank, world_size=world_size)
        if config.file is None:
            raise ConfigError(
                "data.file is null: data.kind 'mnist' reads a file of yours; give it with data.file=FILE.npz (images "
                "[N, 28, 28] uint8, labels [N])"
            )
        self.file = config.file
        digits = read_mnist(config.file, config.part)
        self._digits = Batch(digits.x.to(device), digits.y.to(device))
        self._order = EpochOrder(len(digits.y), seed=seed)

    def held_out(self) -> HeldOut:
        """The part for choosing settings; the one that is reported is for the report."""
        return HeldOut("digits of the part 'tune'", read_mnist(self.file, "tune"))

    def at(self, positions: Positions) -> Batch:
        indices = self._order.indices(positions).to(self._digits.y.device)
        return Batch(self._digits.x[indices], self._digits.y[indices])
