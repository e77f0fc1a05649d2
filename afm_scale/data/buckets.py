"""Samples of several sizes: every turn is of one of them, on all ranks, and which one depends on (seed, turn) alone.

A bucket is a source of its own, with a stream of its own, of which a turn takes the next global batch. An epoch has as
many turns as there are whole global batches; a bucket of a share w of all samples has w of them, rounded down or up by
chance so that it is w in the mean, and they come in a random order. So every sample is as likely as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.random import KeyedDraws, Positions, permutation
from ..core.types import Batch
from .order import StreamCursor
from .source import DataSource, Skipped


class BucketOrder:
    """Which bucket each turn takes, and how many turns each has had by then."""

    def __init__(self, sizes: Mapping[str, int], *, global_batch: int, seed: int) -> None:
        """`sizes`: samples by the name of their bucket. Raises ConfigError for one that is less than a global batch."""
        small = [f"{name} has {size:,}" for name, size in sizes.items() if size < global_batch]
        if small:
            raise ConfigError(
                f"data.global_batch is {global_batch:,}, and every batch is of one bucket: {', '.join(small)}, so that "
                "a batch would hold a sample twice; leave the bucket out, join it with another or lower "
                "data.global_batch"
            )
        counts = torch.tensor(list(sizes.values()), dtype=torch.float64)
        bounds = counts.cumsum(0) / counts.sum()
        self._num_buckets = len(sizes)
        self.num_turns = sum(sizes.values()) // global_batch  # of an epoch

        # Two, because a source looks back from its place to the beginning of an epoch.
        @lru_cache(maxsize=2)
        def epoch_buckets(epoch: int) -> Tensor:
            """[num_turns] int64: evenly spaced points with one random offset, each in a bucket's share; then shuffled.
            """
            offset = KeyedDraws("buckets", seed, epoch, positions=Positions(0, 1, 1)).uniform("offset").double()
            points = (torch.arange(self.num_turns, dtype=torch.float64) + offset) / self.num_turns
            chosen = torch.searchsorted(bounds, points, right=True).clamp(max=len(sizes) - 1)
            return chosen[permutation(self.num_turns, "turns of buckets", seed, epoch)]

        self._of_epoch = epoch_buckets

    def bucket(self, turn: int) -> int:
        return int(self._of_epoch(turn // self.num_turns)[turn % self.num_turns])

    def turns_before(self, turn: int) -> list[int]:
        """Of each bucket."""
        found = torch.zeros(self._num_buckets, dtype=torch.int64)
        for epoch in range(turn // self.num_turns + 1):
            buckets = self._of_epoch(epoch)[: turn - epoch * self.num_turns]
            found += torch.bincount(buckets, minlength=self._num_buckets)
        return found.tolist()


class Buckets:
    """A `DataSource` of several, which have the same number of classes or the same kind of prompts.

    Its position is the number of samples of all buckets; with another global batch the order is another one.
    """

    def __init__(
        self, sources: Sequence[DataSource], order: BucketOrder, *, global_batch: int, rank: int, world_size: int
    ) -> None:
        """`sources` are at their beginning. Samples are drawn of the shape of the first one."""
        self.shape, self.num_classes = sources[0].shape, sources[0].num_classes
        self._sources, self._order, self._global_batch = sources, order, global_batch
        self._cursor = StreamCursor(global_batch=global_batch, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[Batch]:
        streams = [iter(source) for source in self._sources]  # each reads ahead for itself
        while True:
            bucket = self._order.bucket(self._cursor.consumed // self._global_batch)
            batch = next(streams[bucket])
            self._cursor.take()
            yield batch

    def state_dict(self) -> Mapping[str, int]:
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._cursor.load_state_dict(state)
        turns = self._order.turns_before(self._cursor.consumed // self._global_batch)
        for source, had in zip(self._sources, turns, strict=True):
            source.load_state_dict({"consumed": had * self._global_batch})

    def take_skipped(self) -> Sequence[Skipped]:
        return [skipped for source in self._sources for skipped in source.take_skipped()]

    def close(self) -> None:
        for source in self._sources:
            source.close()
