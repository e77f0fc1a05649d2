"""Features of a set of images, by all ranks, against a stored reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ..core.errors import DataError, RunError
from ..core.place import Place
from ..core.random import Positions
from ..data.npz import Npz
from ..parallel.agreement import agree, agreed, from_rank_0
from ..sampling.order import npz_order
from .features.extractor import Extractor
from .figures import Figures, compare
from .images.sets import IMAGES, ImageSet, NpzImages
from .reference import Reference, read_reference
from .summary import SampleSummary


class Encode(Protocol):
    """What encodes pixels [B, C, H, W] in [-1, 1] as latents [B, c, h, w]; noise is keyed by the images' positions."""

    name: str

    def __call__(self, pixels: Tensor, positions: Positions) -> Tensor: ...


def measure(
    images: ImageSet, extractor: Extractor, place: Place, *, num_members: int, batch_size: int, progress: str | None
) -> SampleSummary:
    """Collective: the gathered summary of a set, the same on every rank.

    Images of an npz are numbered as they were before they were shuffled into it, so that what is drawn, its PNGs and
    its npz give the same figures, and the inception score's splits are ADM's.

    Args:
        batch_size: images held at a time; changes no figure.
        progress: of the bar; None: no bar.

    Raises, on every rank, what one of them met: DataError for an image that cannot be read, DivergenceError for a
    sample that is not finite.
    """
    summary = SampleSummary(images.num_images, num_members, place.device)
    numbers = _numbers(images)
    silent = True if progress is None or place.rank != 0 else None
    with agreed(), tqdm(total=images.num_images, unit="image", desc=progress, disable=silent) as bar:
        for indices, batch in images.batches(place.rank, place.world_size, batch_size):
            summary.add(extractor(batch.to(place.device)), numbers[indices])
            bar.update(min(len(batch) * place.world_size, images.num_images - bar.n))
    summary.gather(place)
    return summary


def _numbers(images: ImageSet) -> Tensor:
    """[num_images] int64: the number of each image of the set."""
    is_npz = isinstance(images.images if isinstance(images, AsSamples) else images, NpzImages)
    return npz_order(images.num_images) if is_npz else torch.arange(images.num_images)


def read_reference_on_all(path: Path, extractor: Extractor, place: Place, *, batch_size: int) -> Reference:
    """Collective: `evaluation.reference.read_reference`. Raises, on every rank, the UserError that one of them met."""
    error: RunError | None = None
    reference: Reference | None = None
    has_agreed = False

    def sum_over_ranks(value: Tensor) -> Tensor:
        nonlocal has_agreed
        has_agreed = True
        agree(None)  # here the others hear of the error that kept a rank from coming
        if place.world_size > 1:
            dist.all_reduce(value)
        return value

    try:
        reference = read_reference(
            path, extractor, device=place.device, batch_size=batch_size, rank=place.rank,
            world_size=place.world_size, sum_over_ranks=sum_over_ranks,
        )
    except RunError as caught:
        error = caught
    if not has_agreed:
        agree(error)
    if error is not None:
        raise error
    assert reference is not None
    return reference


def compare_on_rank_0(summary: SampleSummary, reference: Reference, place: Place, *, k: int) -> Figures:
    """Collective: the figures, computed by rank 0 for all. Raises DataError, on all, if the two cannot be compared."""
    return from_rank_0(place.rank, lambda: compare(summary, reference, k=k, device=place.device))


def check_shapes(ours: tuple[int, ...], theirs: tuple[int, ...], path: Path) -> None:
    """Raises DataError if a reference is of images [C, H, W] of another shape than those to be measured."""
    if theirs != ours:
        raise DataError(
            f"{path} is a reference of images of shape {list(theirs)} (channels, height, width), those to be measured "
            f"are {list(ours)}; build a reference of images of that shape"
        )


def rehearse(
    extractor: Extractor, shape: tuple[int, int, int], reference: Reference, path: Path, *, k: int,
    device: torch.device,
) -> None:
    """Raises DataError if what is drawn in this shape cannot be compared with a reference, before anything is drawn."""
    theirs = _shape_of(reference, path)
    if extractor.reads == "images" and theirs is not None:
        check_shapes(shape, theirs, path)
    kind = torch.uint8 if extractor.reads == "images" else torch.float32
    found = extractor(torch.zeros(1, *shape, dtype=kind, device=device)).pool.shape[1]
    if found != len(reference.pool.mean):
        raise DataError(
            f"{path} is a reference of other features: it has {len(reference.pool.mean)} an image, {extractor.name!r} "
            f"gives {found}; build a reference with these"
        )
    if reference.members is not None and len(reference.members) <= k:
        raise DataError(
            f"{path} has {len(reference.members)} members, and precision and recall with k = {k} neighbours need at "
            f"least {k + 1}; build a reference of more images"
        )


def _shape_of(reference: Reference, path: Path) -> tuple[int, ...] | None:
    """[C, H, W] of the images that a stored reference was made of, if it says so."""
    about = reference.about.get("images")
    if isinstance(about, Mapping) and isinstance(about.get("shape"), list):
        return tuple(about["shape"])
    return NpzImages(path, None).shape if IMAGES in Npz(path).members else None  # ADM's holds images


@dataclass(frozen=True)
class AsSamples:
    """Finished images for an extractor that reads samples: as pixels in [-1, 1], or encoded as latents."""

    images: ImageSet
    device: torch.device
    encoder: Encode | None

    @property
    def num_images(self) -> int:
        return self.images.num_images

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the images."""
        return self.images.shape

    @property
    def labels(self) -> Tensor | None:
        return self.images.labels

    def describe(self) -> Mapping[str, Any]:
        encoded = {} if self.encoder is None else {"encoded_by": self.encoder.name}
        return {**self.images.describe(), **encoded}

    def batches(self, rank: int, world_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for indices, images in self.images.batches(rank, world_size, batch_size):
            pixels = images.to(self.device, torch.float32) / 127.5 - 1
            if self.encoder is not None:
                stride = int(indices[1] - indices[0]) if len(indices) > 1 else 1
                pixels = self.encoder(pixels, Positions(int(indices[0]), stride, len(indices)))
            yield indices, pixels
