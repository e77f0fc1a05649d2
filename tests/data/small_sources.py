"""What the tests of image sources share: 30 packed images, the stream of all ranks, and damage to single samples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afm_scale.core.random import Positions
from afm_scale.data.order import EpochOrder
from afm_scale.data.shards import PackedShards
from tests.data.small import packed_images

NUM_SAMPLES, BATCH, SEED = 30, 24, 3  # BATCH divides among 1, 2, 3, 4 and 8 ranks; turns cross the ends of epochs


def pack_numbered(out: Path) -> Path:
    """30 images of 8 pixels, each of its own class: the label is the number of the sample."""
    packed_images(out, num_samples=NUM_SAMPLES, num_classes=NUM_SAMPLES, size=8)
    return out


def stream(build: Callable[..., Any], world_size: int, num_turns: int, **changes: object) -> Tensor:
    """The labels of the global stream: rank r's i-th sample of a turn lies at i W + r within it."""
    shares = []
    for rank in range(world_size):
        source = build(rank, world_size, **changes)
        shares.append(torch.stack([batch.y for batch in islice(source, num_turns)]))
        source.close()
    return torch.stack(shares, dim=-1).flatten()


def samples_at(first: int, count: int) -> Tensor:
    return EpochOrder(NUM_SAMPLES, seed=SEED).indices(Positions(first, 1, count))


def damaged(folder: Path, *samples: int) -> Path:
    """One byte of each sample's image is another."""
    shards = PackedShards(folder)
    for sample in samples:
        path = folder / shards.description.shards[int(shards.index.shard[sample])].name
        data = bytearray(path.read_bytes())
        data[int(shards.index.offset[sample, 0]) + 20] ^= 1
        path.write_bytes(data)
    return folder
