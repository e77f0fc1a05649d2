"""What commands that encode a data set share: ranks write shards in rounds, and a job that was killed goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from tqdm import tqdm

from ..packing.writer import Packing
from ..parallel.agreement import agreed, check_same_on_all_ranks, from_rank_0
from ..parallel.config import ParallelConfig
from ..parallel.launch import Ranks

_TIMEOUT_SECONDS = 7 * 24 * 3600  # ranks wait for each other after every shard, and a shard may take a CPU hours

WriteShard = Callable[[int, Callable[[int], object]], None]
"""Writes a shard, by its number, and tells the second argument how many samples are done."""


class EncodingJob(Protocol):
    """A data set in the making."""

    @property
    def packing(self) -> Packing: ...

    @property
    def about(self) -> str:
        """All that the result depends on, a line for each."""
        ...

    @property
    def num_shards(self) -> int: ...

    def num_samples(self, shard: int) -> int: ...

    def writer(self, shards: Sequence[int]) -> WriteShard:
        """Of this rank, which will write these shards, in this order."""
        ...

    def finish(self) -> None:
        """Once all shards are there, on rank 0."""
        ...


def encoding_plan(device: Literal["auto", "cpu", "cuda"]) -> ParallelConfig:
    """With deterministic kernels: a shard that is encoded again, or on another rank, must come out the same."""
    return ParallelConfig(plan="ddp", device=device, deterministic=True, timeout_seconds=_TIMEOUT_SECONDS)


def encode_all(job: EncodingJob, ranks: Ranks, *, what: str, unit: str, doing: str) -> None:
    """Collective. Writes what is left of the job, in rounds of a shard for each rank: an error on one ends all soon.

    Raises UserError, the same one on every rank, also where ranks do not encode the same.
    """
    check_same_on_all_ranks(job.about, what)
    left = from_rank_0(ranks.rank, lambda: _begin(job))
    if left is None:
        return
    write = job.writer(left[ranks.rank::ranks.world_size])
    with tqdm(
        total=sum(map(job.num_samples, left)), unit=unit, desc=doing, disable=ranks.rank != 0, dynamic_ncols=True
    ) as bar:
        for first in range(0, len(left), ranks.world_size):
            shared = left[first:first + ranks.world_size]
            own = shared[ranks.rank] if ranks.rank < len(shared) else None
            with agreed():
                if own is not None:
                    write(own, bar.update)
            bar.update(sum(job.num_samples(shard) for shard in shared if shard != own))
    with agreed():
        if ranks.rank == 0:
            job.finish()


def _begin(job: EncodingJob) -> list[int] | None:
    """The shards that are still to be written; None if the set is finished."""
    if job.packing.begin() is not None:
        return None
    return [number for number in range(job.num_shards) if not job.packing.is_written(number)]
