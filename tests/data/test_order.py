from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import CheckpointError, ConfigError
from afm_scale.core.random import Positions, permutation
from afm_scale.core.types import Batch
from afm_scale.data.order import EpochOrder, PositionedSource, StreamCursor


class Numbers(PositionedSource):
    """The indices of a data set of 10 samples as labels."""

    def __init__(self, *, global_batch: int, rank: int = 0, world_size: int = 1, num_samples: int = 10) -> None:
        super().__init__(global_batch=global_batch, rank=rank, world_size=world_size)
        self._order = EpochOrder(num_samples, seed=3)

    def at(self, positions: Positions) -> Batch:
        labels = self._order.indices(positions)
        return Batch(labels[:, None, None, None].float(), labels)


def ranks(world_size: int, global_batch: int, consumed: int = 0) -> list[Numbers]:
    sources = [Numbers(global_batch=global_batch, rank=rank, world_size=world_size) for rank in range(world_size)]
    for source in sources:
        source.load_state_dict({"consumed": consumed})
    return sources


def stream(sources: list[Numbers], num_turns: int) -> Tensor:
    """The global stream, from every rank's batches: rank r's i-th sample lies at i W + r within the turn."""
    turns = zip(*(islice(source, num_turns) for source in sources), strict=True)
    return torch.cat([torch.stack([batch.y for batch in turn], dim=1).flatten() for turn in turns])


def test_a_position_is_that_place_in_the_permutation_of_its_epoch() -> None:
    order = EpochOrder(10, seed=3)
    for position in (0, 7, 9, 10, 39, 12_345):
        expected = permutation(10, "epoch", 3, position // 10)[position % 10]
        assert order.indices(Positions(position, 1, 1)).tolist() == [expected]


def test_a_window_may_cross_several_epoch_ends() -> None:
    order = EpochOrder(3, seed=1)
    one_by_one = [order.indices(Positions(position, 1, 1)).item() for position in range(2, 19, 2)]
    assert order.indices(Positions(2, 2, 9)).tolist() == one_by_one


def test_epochs_and_seeds_have_different_orders() -> None:
    first, second = (EpochOrder(100, seed=3).indices(Positions(start, 1, 100)) for start in (0, 100))
    other_seed = EpochOrder(100, seed=4).indices(Positions(0, 1, 100))
    assert not torch.equal(first, second) and not torch.equal(first, other_seed)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_comes_once_per_epoch_over_the_ranks(world_size: int) -> None:
    num_epochs = 6
    samples = stream(ranks(world_size, global_batch=6), num_turns=10 * num_epochs // 6)
    for epoch in samples.split(10):
        assert sorted(epoch.tolist()) == list(range(10))


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_stream_does_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    assert torch.equal(stream(ranks(world_size, 6), 7), stream(ranks(1, 6), 7))


@pytest.mark.parametrize(("before", "after", "global_batch"), [(1, 3, 6), (3, 2, 6), (2, 1, 4)])
def test_a_resumed_run_of_another_world_size_gets_exactly_the_rest(before: int, after: int, global_batch: int) -> None:
    whole = stream(ranks(1, global_batch), 9)
    first = ranks(before, global_batch)
    begun = stream(first, 4)
    states = [source.state_dict() for source in first]
    assert states == [{"consumed": 4 * global_batch}] * before
    rest = stream(ranks(after, global_batch, **states[0]), 5)
    assert torch.equal(torch.cat((begun, rest)), whole)


def test_a_loaded_state_holds_from_the_next_batch_of_a_running_iterator() -> None:
    source = Numbers(global_batch=4)
    batches = iter(source)
    first = [next(batches).y.tolist() for _ in range(3)]
    source.load_state_dict({"consumed": 4})
    assert [next(batches).y.tolist() for _ in range(2)] == first[1:]
    assert source.state_dict() == {"consumed": 12}


def test_iterators_of_one_source_share_its_position() -> None:
    source, whole = Numbers(global_batch=5), iter(Numbers(global_batch=5))
    discriminator, generator = iter(source), iter(source)
    for turn in (discriminator, generator, generator, discriminator):
        assert torch.equal(next(turn).y, next(whole).y)


def test_the_cursor_counts_positions_of_one_turn_after_another() -> None:
    cursor = StreamCursor(global_batch=8, rank=1, world_size=2)
    assert [cursor.take() for _ in range(2)] == [Positions(1, 2, 4), Positions(9, 2, 4)]


@pytest.mark.parametrize(
    ("global_batch", "world_size", "way_out"), [(10, 4, "use 8 or 12"), (3, 4, "use 4"), (0, 1, "at least 1")]
)
def test_a_batch_that_ranks_cannot_share_is_refused_with_a_way_out(
    global_batch: int, world_size: int, way_out: str
) -> None:
    with pytest.raises(ConfigError, match=f"data.global_batch (is )?{global_batch}.*{way_out}"):
        StreamCursor(global_batch=global_batch, rank=0, world_size=world_size)


@pytest.mark.parametrize(
    "state",
    [{"consumed": -1}, {"consumed": 1.0}, {"consumed": True}, {"consumed": "8"}, {}, {"consumed": 1, "epoch": 2}],
)
def test_a_state_that_is_no_count_is_refused_and_changes_nothing(state: dict) -> None:
    source = Numbers(global_batch=4)
    next(iter(source))
    with pytest.raises(CheckpointError, match="state of the data source"):
        source.load_state_dict(state)
    assert source.state_dict() == {"consumed": 4}


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    labels = next(iter(Numbers(global_batch=25))).y
    assert torch.bincount(labels, minlength=10).ge(math.floor(25 / 10)).all() and len(labels) == 25
