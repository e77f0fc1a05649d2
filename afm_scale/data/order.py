"""The position arithmetic every source shares: which positions are this rank's, and which sample lies at each.

`EpochOrder` is for a data set of N samples; an endless source draws the sample at a position from the position itself.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.batch_size import microbatch_size
from ..core.errors import CheckpointError
from ..core.random import Positions, permutation
from ..core.typed import Mistake, build, found
from ..core.types import Batch
from .source import Position, Skipped


class EpochOrder:
    """Stream position n holds sample permutation(seed, n // N)[n mod N] of a data set of N samples."""

    def __init__(self, num_samples: int, *, seed: int) -> None:
        self._num_samples = num_samples

        # Two, because a turn may cross the end of an epoch while another iterator still reads the old one.
        @lru_cache(maxsize=2)
        def epoch_permutation(epoch: int) -> Tensor:
            return permutation(num_samples, "epoch", seed, epoch)

        self._permutation = epoch_permutation

    def indices(self, positions: Positions) -> Tensor:
        """[count] int64 indices into the data set, on the CPU. A window may cross any number of epoch ends."""
        stream = torch.arange(positions.count) * positions.stride + positions.offset
        epochs, within = stream // self._num_samples, stream % self._num_samples
        values, counts = torch.unique_consecutive(epochs, return_counts=True)
        parts = within.split(counts.tolist())
        return torch.cat([self._permutation(epoch)[part] for epoch, part in zip(values.tolist(), parts, strict=True)])


class StreamCursor:
    """Where a stream is: samples consumed so far over all ranks, and this rank's positions of the turn that follows.

    The players' turns take their positions one after another from the same cursor.
    """

    def __init__(self, *, global_batch: int, rank: int, world_size: int) -> None:
        """Raises ConfigError if the ranks cannot share `global_batch` evenly."""
        assert 0 <= rank < world_size
        self._count = microbatch_size(global_batch, world_size)
        self.consumed = 0
        self._global_batch = global_batch
        self._rank = rank
        self._world_size = world_size

    def take(self) -> Positions:
        """This rank's positions of the next turn; they count as consumed from now on."""
        positions = next(self.upcoming())
        self.consumed += self._global_batch
        return positions

    def upcoming(self) -> Iterator[Positions]:
        """This rank's positions of all turns from the next one on, for reading ahead; nothing counts as consumed."""
        for first in itertools.count(self.consumed, self._global_batch):
            yield Positions(first + self._rank, self._world_size, self._count)

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Raises CheckpointError if the state is no `Position`."""
        try:
            self.consumed = build(Position, state).consumed
        except Mistake as error:
            raise CheckpointError(
                f"the state of the data source is {found(dict(state))} ({error}); resume from a checkpoint of this "
                "version"
            ) from error


class HeldOut(NamedTuple):
    """Samples of the same kind that no run is trained on."""

    name: str  # for a reader: "held-out digits"
    batch: Batch  # on the CPU; shared, not to be written to


class PositionedSource(ABC):
    """A `DataSource` whose sample at a stream position is a pure function of the position: subclasses say which."""

    shape: tuple[int, int, int]
    num_classes: int

    def __init__(self, *, global_batch: int, rank: int, world_size: int) -> None:
        self._cursor = StreamCursor(global_batch=global_batch, rank=rank, world_size=world_size)

    @abstractmethod
    def at(self, positions: Positions) -> Batch:
        """The samples at stream positions (not positions in a batch), on the device: x float32, y int64."""

    def held_out(self) -> HeldOut | None:
        """What a classifier of these data may be measured on; None if nothing is held out."""
        return None

    def __iter__(self) -> Iterator[Batch]:
        # Nothing is read ahead: `consumed` is exact after each batch, and a loaded state holds from the next batch on.
        while True:
            yield self.at(self._cursor.take())

    def state_dict(self) -> dict[str, int]:
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._cursor.load_state_dict(state)

    def take_skipped(self) -> Sequence[Skipped]:
        return ()

    def close(self) -> None:  # noqa: B027  (the protocol asks for it; nothing is held)
        pass
