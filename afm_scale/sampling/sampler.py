"""Sampling: transport of noise by a generator, in one or a few steps; deterministic, or with fresh noise in between.

Image number i is a function of (weights, seed, i) alone, bit for bit. Its noise is keyed by i. That is not enough,
because a matrix product rounds differently for another batch size; so the network always sees tiles of 32 consecutive
numbers that start at a multiple of 32, whatever was asked for and however many ranks share the work. (On one kind of
machine: other processors round differently, and so may another number of CPU threads.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.place import Place
from ..core.random import KeyedDraws, Positions
from ..core.ranges import Range
from ..core.types import Generator
from ..flow.path import Prediction, interpolate, move

TILE = 32

Decode = Callable[[Tensor], Tensor]
"""A whole tile of samples [32, C, h, w] -> what is wanted of it [32, ...], sample by sample: latents -> pixels."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How samples are drawn wherever a run draws some."""

    num_steps: Annotated[int, Range(1, 100_000)] = 1  # network evaluations for one image
    # the report of a run is also made of samples in so many evaluations each; for networks that take any number
    also_reported: tuple[Annotated[int, Range(1, 100_000)], ...] = ()


@torch.no_grad()
def trajectory(
    generator: Generator, noise: Tensor, labels: Tensor, *, num_steps: int, prediction: Prediction,
    between: Sequence[float] | None = None, renoise: Callable[[int], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yields the samples [B, C, H, W] at the num_steps + 1 times 1, 1 - 1/num_steps, ..., 0.

    Args:
        noise: [B, C, H, W], standard normal, on the generator's device and in its dtype.
        labels: [B] int64.
        between: the num_steps - 1 times between 1 and 0, falling, in place of the equal ones.
        renoise: the noise for step 0, 1, ...: every step then goes to the data, and from there to its time with it
            (consistency sampling); None: every step goes to its time along the flow.
    """
    times = torch.linspace(1, 0, num_steps + 1)  # float32, on the CPU so that every device gets the same
    if between is not None:
        times = torch.tensor((1.0, *between, 0.0))
    x = noise
    yield x
    for index, (source, target) in enumerate(zip(times[:-1], times[1:], strict=True)):
        s, t = source.to(x.device).expand(len(x)), target.to(x.device).expand(len(x))
        end = t if renoise is None else torch.zeros_like(t)
        x = move(prediction, generator(x, s, end, labels), x, s, end)
        if renoise is not None and target > 0:
            x = interpolate(x, renoise(index), t)
        yield x


def sample(
    generator: Generator, noise: Tensor, labels: Tensor, *, num_steps: int, prediction: Prediction,
    between: Sequence[float] | None = None, renoise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """The end of `trajectory`: images or latents, [B, C, H, W]."""
    *_, x = trajectory(
        generator, noise, labels, num_steps=num_steps, prediction=prediction, between=between, renoise=renoise
    )
    return x


@dataclass(frozen=True, kw_only=True)
class SampleStream:
    """An endless numbered row of images.

    Image i has class labels[i mod len(labels)], all classes, balanced; or one of `labels` drawn by (seed, i) alone.
    """

    seed: int
    shape: tuple[int, int, int]  # (C, H, W) of one image
    labels: tuple[int, ...]
    num_steps: int
    prediction: Prediction
    dtype: torch.dtype = torch.float32  # the generator's
    random_labels: bool = False
    between: tuple[float, ...] | None = None  # num_steps - 1 times, falling from 1 to 0; None: equal steps
    renoises: bool = False  # whether every step goes to the data and back with fresh noise

    def labels_of(self, indices: Tensor) -> Tensor:
        """The classes of images, [N] int64; `indices` [N] int64 are consecutive numbers, on the CPU."""
        count = len(self.labels)
        chosen = indices % count
        if self.random_labels and len(indices):
            positions = Positions(int(indices[0]), 1, len(indices))
            draws = KeyedDraws(self.seed, "sample", positions=positions)
            chosen = draws.uniform("label", 0, count).long().clamp(max=count - 1)  # the product may round up
        return torch.tensor(self.labels)[chosen]

    def tile(self, generator: Generator, number: int, device: torch.device) -> Tensor:
        """Images 32 number ... 32 number + 31, [32, C, H, W]."""
        positions = Positions(number * TILE, 1, TILE)
        # Drawn on the CPU: the logarithm and cosine of a GPU differ in the last bit, and it is little work.
        draws = KeyedDraws(self.seed, "sample", positions=positions)
        noise = draws.normal("noise", self.shape)
        labels = self.labels_of(torch.arange(positions.offset, positions.offset + TILE))
        return sample(
            generator, noise.to(device, self.dtype), labels.to(device),
            num_steps=self.num_steps, prediction=self.prediction, between=self.between,
            renoise=(lambda index: draws.normal(f"noise {index}", self.shape).to(device, self.dtype))
            if self.renoises else None,
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """The wanted images of one tile."""

    indices: Tensor  # [N] int64, N <= 32, on the CPU
    images: Tensor  # [N, C, H, W], on the device; decoded, if that was asked for
    labels: Tensor  # [N] int64, on the CPU


def generate(
    generator: Generator, stream: SampleStream, *, start: int, count: int, place: Place, decode: Decode | None = None
) -> Iterator[Tile]:
    """Yields this rank's share of images start ... start + count - 1, in order, a tile at a time.

    Every rank calls the network equally often, because a sharded network gathers its weights from all of them. So
    every rank must take all it is given; a rank with less to do throws some away. `decode`, which must know no ranks,
    is given the tiles that are wanted, each of them whole.

    Ranks of a group, which share the network's work, draw the same tiles, and each keeps every so many of them.
    """
    first, end = start // TILE, -(-(start + count) // TILE)
    num_drawers = place.num_data_ranks
    for round_start in range(first, end, num_drawers):
        number = round_start + place.data_rank
        images = stream.tile(generator, number, place.device)
        is_kept = number // num_drawers % place.group_size == place.rank % place.group_size
        low, high = max(start, number * TILE), min(start + count, (number + 1) * TILE)
        if is_kept and low < high:
            indices = torch.arange(low, high)
            images = images if decode is None else decode(images)
            yield Tile(indices, images[low - number * TILE : high - number * TILE], stream.labels_of(indices))


def generate_on_all(
    generator: Generator, stream: SampleStream, *, start: int, count: int, place: Place
) -> tuple[Tensor, Tensor]:
    """Collective: images [count, C, H, W] and labels [count], on the CPU of every rank. All must fit into memory."""
    images = torch.zeros(count, *stream.shape, dtype=stream.dtype, device=place.device)
    for tile in generate(generator, stream, start=start, count=count, place=place):
        images[tile.indices.to(place.device) - start] = tile.images
    if place.world_size > 1:
        dist.all_reduce(images)  # every image is zero on all ranks but one, so the sum is exact
    return images.cpu(), stream.labels_of(torch.arange(start, start + count))
