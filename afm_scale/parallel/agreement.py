"""Words that ranks exchange: what went wrong on one, what rank 0 has found, whether all were told the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from ..core.errors import ConfigError, RunError

T = TypeVar("T")


def agree(error: RunError | None) -> None:
    """Collective. If any rank has met an error, every rank raises that of the lowest such rank.

    Without a process group this process is alone, and raises its own.
    """
    if not dist.is_initialized():
        if error is not None:
            raise error
        return
    errors: list[RunError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, None if error is None else error.plain())
    for found in errors:
        if found is not None:
            raise found.of_all_ranks() from error


@contextmanager
def agreed() -> Iterator[None]:
    """Collective at its end. A RunError that one rank meets in the block ends all ranks, with one message."""
    error: RunError | None = None
    try:
        yield
    except RunError as caught:
        error = caught
    agree(error)


def from_rank_0(rank: int, work: Callable[[], T]) -> T:
    """Collective: what `work` returns on rank 0, which alone calls it. A RunError that it meets ends all ranks."""
    result: list[Any] = [None]
    with agreed():
        if rank == 0:
            result[0] = work()
    if dist.is_initialized():
        dist.broadcast_object_list(result, src=0)
    return result[0]


def check_same_on_all_ranks(text: str, what: str) -> None:
    """Collective. Raises ConfigError, the same on every rank, if ranks disagree on `text` (`what`: its name)."""
    texts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    others = [rank for rank, other in enumerate(texts) if other != texts[0]]
    if not others:
        return
    ours, theirs = texts[0].splitlines(), texts[others[0]].splitlines()
    length = max(len(ours), len(theirs))
    ours += ["(nothing)"] * (length - len(ours))
    theirs += ["(nothing)"] * (length - len(theirs))
    differing = [(mine, other) for mine, other in zip(ours, theirs, strict=True) if mine != other]
    mine, other = differing[0] if differing else ("other line ends", "these")
    raise ConfigError(
        f"the ranks disagree on {what}: rank 0 has {mine.strip()!r} where rank {others[0]} has {other.strip()!r} "
        f"(ranks that differ from rank 0: {', '.join(map(str, others))}); start every rank with the same recipe, "
        f"overrides and code"
    ).of_all_ranks()
