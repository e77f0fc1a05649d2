"""An extractor whose features of an image depend on nothing but the image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .extractor import Extractor, Features

TILE = 32  # images


class Tiled:
    """Calls an extractor with 32 images at a time, always; what is missing is filled up with zeros.

    A float32 network rounds differently for another batch size, and that is set by the number of ranks and by what
    fits into memory, which no figure should depend on.
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        self.name: str = extractor.name
        self.reads: Literal["images", "samples"] = extractor.reads

    def __call__(self, x: Tensor) -> Features:
        """The features of x [B, C, H, W], for any B > 0."""
        parts = [self._of_tile(x[start:start + TILE]) for start in range(0, len(x), TILE)]
        return Features(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))

    def _of_tile(self, x: Tensor) -> tuple[Tensor | None, ...]:
        found = self._extractor(torch.cat((x, x.new_zeros(TILE - len(x), *x.shape[1:]))))
        return tuple(None if part is None else part[:len(x)] for part in (found.pool, found.spatial, found.logits))
