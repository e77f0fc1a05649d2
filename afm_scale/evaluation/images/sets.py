"""Sets of finished images to be measured: a folder of files, an npz as ADM writes it, or a packed data set.

All images of a set have one size and one mode, and are taken as they are: nothing is resized, cropped or converted,
because each of these moves a Frechet distance (Parmar et al., arXiv 2104.11222).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...core.errors import DataError, UserError
from ...data.description import DESCRIPTION_NAME
from ...data.npz import Npz
from .encoded import FolderImages, PackedImages, channels_first
from .stamp import stamp_in

IMAGES = "arr_0"
_LABELS = ("labels", "arr_1")  # ours, and ADM's sampling script's


class ImageSet(Protocol):
    num_images: int
    shape: tuple[int, int, int]  # (C, H, W)
    labels: Tensor | None  # [N] int64, none negative, if the set has them

    def describe(self) -> Mapping[str, Any]:
        """Where the images come from, as JSON values; changes if the images do, as far as that is cheaply seen."""
        ...

    def batches(self, rank: int, world_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this rank's images, those with index mod world_size = rank, in order and in bounded memory.

        Each batch is (indices [B] int64, images uint8 [B, C, H, W]) on the CPU, 1 <= B <= batch_size. A rank may have
        no batch at all. Raises DataError, on this rank alone, at an image that is damaged or unlike the first.
        """
        ...


def open_images(path: Path, *, limit: int | None = None) -> ImageSet:
    """The images under a path: a folder of image files, a folder packed by tools/make_shards.py, or an npz.

    Args:
        limit: use at most so many, the first of the set's order (see the classes).

    Raises UserError or DataError if there is nothing to be read or it is none of these. Of a folder only the first
    image is decoded here, of an npz only the headers and labels are read.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the number of images to use is {limit}; wanted at least 1")
    if path.is_dir():
        packed = (path / DESCRIPTION_NAME).exists()
        return PackedImages(path, limit) if packed else FolderImages(path, limit)
    if path.exists():
        return NpzImages(path, limit)
    raise absent(path)


def absent(path: Path) -> DataError:
    """What to raise where nothing is at a path that should lead to images."""
    return DataError(f"{path} is not there; wanted a folder of images, a packed data set or an npz")


class NpzImages:
    """An `ImageSet` in an npz: arr_0 uint8 [N, H, W, C] as ADM writes it, labels or arr_1 [N] of integers if any."""

    def __init__(self, path: Path, limit: int | None) -> None:
        """Raises DataError if there is no such array, or labels that are no labels."""
        self._npz = Npz(path)
        images = self._npz.member(IMAGES)
        fits = images.dtype == np.uint8 and len(images.shape) == 4 and images.shape[3] in (1, 3)
        if not fits or 0 in images.shape:
            raise DataError(
                f"{path}, array {IMAGES!r} is {images}; wanted finished images, uint8 [N, H, W, C] with values 0 to "
                "255 and C = 1 or 3, the channels last"
            )
        self._num_all, height, width, channels = images.shape
        stamp = stamp_in(self._npz)
        if stamp is not None and stamp.num != self._num_all:
            raise DataError(
                f"{path} holds {self._num_all} images where its stamp says {stamp.num}: it was changed; draw it anew"
            )
        self.num_images = min(self._num_all, limit or self._num_all)
        self.shape = (channels, height, width)
        self.labels = self._read_labels()

    def _read_labels(self) -> Tensor | None:
        name = next((name for name in _LABELS if name in self._npz.members), None)
        if name is None:
            return None
        found = self._npz.members[name]
        place = f"{self._npz.path}, array {name!r}"
        if found.dtype.kind not in "iu" or found.shape != (self._num_all,):
            raise DataError(f"{place} is {found}; wanted the classes of {self._num_all} images, integers [N]")
        labels = torch.from_numpy(self._npz.read(name).astype(np.int64))
        if labels.min() < 0:
            raise DataError(f"{place} holds {int(labels.min())}; wanted classes, which begin at 0")
        return labels[:self.num_images]

    def describe(self) -> Mapping[str, Any]:
        return {
            "kind": "npz", "source": str(self._npz.path), "num_images": self.num_images, "out_of": self._num_all,
            "shape": list(self.shape), "crc32": f"{self._npz.members[IMAGES].crc32:08x}",
        }

    def batches(self, rank: int, world_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self._npz.rows(IMAGES, self.num_images)
        # Copies: a row is a view that would keep its whole block, with the rows of all other ranks.
        own = ((index, row.copy()) for index, row in enumerate(rows) if index % world_size == rank)
        while batch := list(islice(own, batch_size)):
            indices, images = zip(*batch, strict=True)
            yield torch.tensor(indices), channels_first(images)
