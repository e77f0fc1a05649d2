"""Images drawn from a generator: in windows that fit into memory, and as a set to be measured without being written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.errors import DivergenceError, UserError
from ..core.place import Place
from ..core.types import Generator
from .decoding import Decoder
from .pictures import to_uint8
from .sampler import TILE, SampleStream, Tile, generate

LabelChoice = Literal["balanced", "random"] | tuple[int, ...]
"""Which classes images are drawn of: all in turn, any by chance, or these in turn."""


def classes_of(choice: LabelChoice, num_classes: int, *, setting: str = "--labels") -> tuple[int, ...]:
    """Raises UserError if a class is chosen that there is not; `setting`: how a user says which."""
    if isinstance(choice, str):
        return tuple(range(num_classes))
    wrong = [label for label in choice if not 0 <= label < num_classes]
    if wrong:
        raise UserError(f"{setting}: there is no class {wrong[0]}; this model has classes 0 to {num_classes - 1}")
    return choice


def describe_labels(choice: LabelChoice) -> str:
    if choice == "balanced":
        return "class-balanced (worth about 0.1 FID against random labels)"
    if choice == "random":
        return "random, by (seed, number)"
    return f"{', '.join(map(str, choice))} in turn"


@dataclass(frozen=True)
class Drawing:
    """A numbered row of samples of one generator, decoded to pixels if they are latents and a decoder is given."""

    generator: Generator
    stream: SampleStream
    place: Place
    decoder: Decoder | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of what is drawn."""
        return self.stream.shape if self.decoder is None else self.decoder.shape

    def windows(self, num: int, at_once: int) -> Iterator[tuple[int, list[Tile]]]:
        """Yields this rank's share of the first `num` samples, about `at_once` at a time and whole tiles always.

        With each window comes how many are drawn by then, over all ranks.
        Every rank gets equally many windows, some of which may be empty, and must take them all as long as the others
        do. A sample depends on no argument.
        """
        window = max(1, at_once // TILE) * TILE * self.place.world_size
        for start in range(0, num, window):
            end = min(start + window, num)
            yield end, list(generate(
                self.generator, self.stream, start=start, count=end - start, place=self.place, decode=self.decoder
            ))


def check_finite(tiles: list[Tile]) -> None:
    """Raises DivergenceError if a sample is not finite: as a picture it would be black, and no network would mind."""
    for tile in tiles:
        finite = tile.images.isfinite().flatten(1).all(dim=1).cpu()
        if not finite.all():
            raise DivergenceError(
                f"sample {int(tile.indices[~finite][0])} is not of finite numbers: the training had diverged; use an "
                "older checkpoint"
            )


@dataclass(frozen=True)
class DrawnImages:
    """What a generator draws, as an `evaluation.images.sets.ImageSet` to be measured.

    Its batches are pictures, uint8; or the samples themselves for an extractor that reads those.
    """

    drawing: Drawing
    num_images: int
    reads: Literal["images", "samples"]
    about: Mapping[str, Any]  # JSON values: whose images these are

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.drawing.shape

    @property
    def labels(self) -> Tensor:
        return self.drawing.stream.labels_of(torch.arange(self.num_images))

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "drawn", **self.about, "num_images": self.num_images, "shape": list(self.shape)}

    def batches(self, rank: int, world_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The share of the drawing's own rank, on the device; every rank draws equally often.

        Raises DivergenceError, on this rank alone and when all is drawn, if a sample is not finite. A sharded network
        does not let one rank stop before the others.
        """
        assert (rank, world_size) == (self.drawing.place.rank, self.drawing.place.world_size)
        error: DivergenceError | None = None
        for _, tiles in self.drawing.windows(self.num_images, batch_size):
            try:
                check_finite(tiles)
            except DivergenceError as caught:
                error = error or caught
            if tiles and error is None:
                images = torch.cat([tile.images for tile in tiles])
                images = to_uint8(images) if self.reads == "images" else images
                yield torch.cat([tile.indices for tile in tiles]), images
        if error is not None:
            raise error
