"""Features of an image do not depend on what it is measured with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.random import tensor_generator
from afm_scale.evaluation.features.extractor import Features
from afm_scale.evaluation.features.tiles import TILE, Tiled

IMAGES = torch.randint(0, 256, (150, 3, 32, 32), generator=tensor_generator("tiles"), dtype=torch.uint8)


class Trunk:
    """Convolutions and matrix products in float32, which round differently for another batch size."""

    name, reads = "trunk", "images"

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 64, 5, stride=2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
                nn.Linear(64 * 12 * 12, 96),
            ).requires_grad_(False)
        self.batches: list[int] = []

    def __call__(self, x: Tensor) -> Features:
        self.batches.append(len(x))
        pool = self.layers(x.float() / 255)
        return Features(pool, logits=pool[:, :10])


def in_batches(size: int, stride: int = 1) -> Features:
    """All features in the order of the images, from the shares of `stride` ranks and batches of `size`."""
    extractor = Tiled(Trunk())
    pool, logits = torch.empty(len(IMAGES), 96), torch.empty(len(IMAGES), 10)
    for rank in range(stride):
        mine = torch.arange(rank, len(IMAGES), stride)
        for indices in mine.split(size):
            found = extractor(IMAGES[indices])
            assert found.spatial is None and found.logits is not None
            pool[indices], logits[indices] = found.pool, found.logits
    return Features(pool, logits=logits)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (7, 1), (150, 1), (64, 2), (5, 3), (40, 4)])
def test_neither_batch_size_nor_ranks_change_a_bit(size: int, stride: int) -> None:
    expected, found = in_batches(TILE), in_batches(size, stride)
    assert torch.equal(found.pool, expected.pool)
    assert torch.equal(found.logits, expected.logits)


def test_the_extractor_is_always_given_whole_tiles() -> None:
    trunk = Trunk()
    Tiled(trunk)(IMAGES[:70])
    assert trunk.batches == [TILE] * 3
