"""What shows or holds many images in one file: a labelled grid, and the npz of the ADM evaluation suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.files import write_atomically
from .order import npz_order
from .pictures import BACKGROUND, image_grid, save_png
from .sampler import Tile

GRID_ROWS, GRID_COLUMNS = 40, 10
STAMP = "stamp"  # the array of an npz that says which images it holds
_WIDTH_OF_SMALL_IMAGES = 64  # that they are enlarged to


class Sheets:
    """Takes images in any order, then writes the files. An npz is built in memory: all its images, once.

    The grid has a row for each of the first classes, in the order of their numbers, with its first images.
    """

    def __init__(
        self, num: int, shape: tuple[int, int, int], *, grid: Path | None, npz: Path | None, stamp: bytes
    ) -> None:
        self._grid, self._npz, self._stamp = grid, npz, stamp
        self._num = num
        self._shape = shape
        self._rows: dict[int, dict[int, Tensor]] = {}  # class -> number -> image
        if npz is not None:
            channels, height, width = shape
            self._places = torch.argsort(npz_order(num))  # of image i in the npz
            self._images = np.empty((num, height, width, channels), dtype=np.uint8)
            self._labels = np.empty(num, dtype=np.int64)

    def add(self, tile: Tile) -> None:
        """Images are uint8 [N, C, H, W] on the CPU."""
        if self._npz is not None:
            places = self._places[tile.indices].numpy()
            self._images[places] = tile.images.permute(0, 2, 3, 1).numpy()
            self._labels[places] = tile.labels.numpy()
        if self._grid is not None:
            for index, label, image in zip(tile.indices.tolist(), tile.labels.tolist(), tile.images, strict=True):
                self._keep(index, label, image)

    def _keep(self, index: int, label: int, image: Tensor) -> None:
        row = self._rows.setdefault(label, {})
        row[index] = image.clone()  # of its own: a view would keep the whole tile
        if len(row) > GRID_COLUMNS:
            del row[max(row)]
        if len(self._rows) > GRID_ROWS:
            del self._rows[max(self._rows)]

    def write(self) -> Iterator[str]:
        """Yields a line about each file. Raises UserError if the file system refuses."""
        if self._grid is not None:
            columns = max(map(len, self._rows.values()))
            save_png(image_grid(
                torch.stack(self._cells(columns)), columns=columns,
                upscale=max(1, _WIDTH_OF_SMALL_IMAGES // self._shape[-1]),
                row_labels=[str(label) for label in sorted(self._rows)],
            ), self._grid)
            yield f"{self._grid}: a row for each of {len(self._rows)} classes, its first images (at most {columns})"
        if self._npz is not None:
            stamp = np.frombuffer(self._stamp, np.uint8)
            arrays = {"arr_0": self._images, "labels": self._labels, STAMP: stamp}
            write_atomically(self._npz, lambda file: np.savez(file, **arrays))
            yield f"{self._npz}: arr_0 uint8 {list(self._images.shape)}, shuffled, and the labels in the same order"

    def _cells(self, columns: int) -> list[Tensor]:
        """Row by row, filled up with the colour between the images where a class has too few."""
        empty = torch.full(self._shape, BACKGROUND, dtype=torch.uint8)
        cells = []
        for _, row in sorted(self._rows.items()):
            images = [row[index] for index in sorted(row)]
            cells += images + [empty] * (columns - len(images))
        return cells
