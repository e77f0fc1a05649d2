"""Buckets: the order is that of (seed, turn) alone, every sample is as likely as any other, and positions are exact."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.core.random import Positions
from afm_scale.core.types import Batch
from afm_scale.data.buckets import BucketOrder, Buckets
from afm_scale.data.order import EpochOrder, PositionedSource

SIZES = {"square": 37, "wide": 22, "tall": 9}
SHAPES = [(1, 4, 4), (1, 2, 8), (1, 8, 2)]


class Numbered(PositionedSource):
    """Samples of one shape, whose labels are their numbers."""

    num_classes = 100

    def __init__(self, bucket: int, *, global_batch: int, rank: int, world_size: int) -> None:
        super().__init__(global_batch=global_batch, rank=rank, world_size=world_size)
        self.shape = SHAPES[bucket]
        self._order = EpochOrder(list(SIZES.values())[bucket], seed=bucket)

    def at(self, positions: Positions) -> Batch:
        labels = self._order.indices(positions)
        return Batch(torch.zeros(len(labels), *self.shape), labels)


def buckets(rank: int = 0, world_size: int = 1, *, global_batch: int = 4) -> Buckets:
    place = {"global_batch": global_batch, "rank": rank, "world_size": world_size}
    order = BucketOrder(SIZES, global_batch=global_batch, seed=5)
    return Buckets([Numbered(number, **place) for number in range(len(SIZES))], order, **place)


def turns(source: Buckets, count: int) -> list[tuple[tuple[int, ...], list[int]]]:
    return [(tuple(batch.x.shape[1:]), batch.y.tolist()) for batch in islice(source, count)]


def test_every_turn_is_of_one_shape_and_over_an_epoch_each_bucket_has_its_share_of_turns() -> None:
    order = BucketOrder(SIZES, global_batch=4, seed=5)
    assert order.num_turns == sum(SIZES.values()) // 4
    for epoch in range(20):
        first = epoch * order.num_turns
        found = torch.tensor(order.turns_before(first + order.num_turns)) - torch.tensor(order.turns_before(first))
        exact = torch.tensor(list(SIZES.values())) / sum(SIZES.values()) * order.num_turns
        assert ((found - exact).abs() < 1).all() and found.sum() == order.num_turns


def test_in_the_mean_over_epochs_every_bucket_has_its_share_to_one_in_a_hundred() -> None:
    order = BucketOrder(SIZES, global_batch=4, seed=5)
    epochs = 400
    found = torch.tensor(order.turns_before(epochs * order.num_turns)) / (epochs * order.num_turns)
    assert torch.allclose(found, torch.tensor(list(SIZES.values())) / sum(SIZES.values()), atol=0.01)


def test_turns_counted_at_once_are_those_counted_one_by_one() -> None:
    order = BucketOrder(SIZES, global_batch=4, seed=5)
    had = [0] * len(SIZES)
    for turn in range(3 * order.num_turns):
        assert order.turns_before(turn) == had
        had[order.bucket(turn)] += 1


def test_within_an_epoch_of_a_bucket_no_sample_comes_twice() -> None:
    seen: dict[tuple[int, ...], list[int]] = {shape: [] for shape in SHAPES}
    for shape, labels in turns(buckets(), 60):
        seen[shape] += labels
    for shape, size in zip(SHAPES, SIZES.values(), strict=True):
        for start in range(0, len(seen[shape]) - size + 1, size):
            assert sorted(seen[shape][start : start + size]) == list(range(size))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_turns_of_one_rank(world_size: int) -> None:
    whole = turns(buckets(), 50)
    shares = [turns(buckets(rank, world_size), 50) for rank in range(world_size)]
    for turn, of_ranks in zip(whole, zip(*shares, strict=True), strict=True):
        assert {shape for shape, _ in of_ranks} == {turn[0]}
        assert [label for row in zip(*(labels for _, labels in of_ranks), strict=True) for label in row] == turn[1]


@pytest.mark.parametrize("done", [0, 1, 17, 41])
def test_a_stream_goes_on_at_its_position_with_another_number_of_ranks(done: int) -> None:
    first = buckets()
    before = turns(first, done)
    later = [buckets(rank, 2) for rank in range(2)]
    for source in later:
        source.load_state_dict(first.state_dict())
    shares = [turns(source, 10) for source in later]
    found = [
        (left[0], [label for pair in zip(left[1], right[1], strict=True) for label in pair])
        for left, right in zip(*shares, strict=True)
    ]
    assert before + found == turns(buckets(), done + 10)


def test_a_bucket_that_is_less_than_a_global_batch_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="tall has 9.*global_batch"):
        BucketOrder(SIZES, global_batch=10, seed=0)
