"""What most projects do, to be compared with: the webdataset library, Pillow in worker processes, default collation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from torch import Tensor

from ..data.transforms import adm_crop


def plain_batches(
    folder: Path, *, size: int, batch: int, workers: int, prefetch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (uint8 [B, 3, S, S], int64 [B]) from the shards of a folder; the workers end with the iterator."""
    shards = sorted(str(path) for path in folder.glob("shard-*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .repeat()
        .shuffle(200)
        .to_tuple("jpg", "cls")
        .map_tuple(partial(_pixels, size=size), _label)
        .batched(batch)
    )
    yield from webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=prefetch)


def _pixels(data: bytes, size: int) -> np.ndarray:
    image = adm_crop(Image.open(io.BytesIO(data)).convert("RGB"), size)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _label(data: bytes) -> int:
    return int.from_bytes(data, "little")
