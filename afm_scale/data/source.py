"""The protocol of a data source: an endless stream with a position.

The stream is one sequence of samples, a pure function of the seed: stream position n is sample n mod N of epoch n // N.
One `next()` takes the following `global_batch` positions; rank r of W gets those with (offset in the batch) mod W = r,
in order, whatever W is. So the position is one number, and it survives a change of W.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.types import Batch


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What every source's configuration holds; each also has `shape` (C, H, W) and `num_classes`, as a source has."""

    global_batch: int  # samples per turn (one update of one player), over all ranks and microbatches


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that could not be read, and what its place in the batch was filled with (`data.on_error: skip`)."""

    place: str  # shard and key
    reason: str
    substitute: str  # shard and key


class DataSource(Protocol):
    shape: tuple[int, int, int]  # (C, H, W) of one sample
    num_classes: int

    def __iter__(self) -> Iterator[Batch]:
        """Endless: this rank's [global_batch / world_size] samples of one turn after another, on the device."""
        ...

    def state_dict(self) -> Mapping[str, int]:
        """{"consumed": samples handed out so far over all ranks}."""
        ...

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...

    def take_skipped(self) -> Sequence[Skipped]:
        """What this rank had to skip since the last call, in order."""
        ...

    def close(self) -> None: ...
