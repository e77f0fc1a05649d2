"""What ranks leave for each other in the store where they met, and how long one has left nothing new."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch.distributed as dist

from ..core.words import Word
from .verdict import Verdict

_WORD, _VERDICT, _LEFT = "watch/word/{}", "watch/verdict", "watch/left"


class Board:
    """A word of each rank, the first verdict, and how many have left. Raises what torch makes of a lost store."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size

    def put(self, word: Word) -> None:
        self._store.set(_WORD.format(self._rank), word.encode())

    def words(self, ranks: Iterable[int]) -> dict[int, Word]:
        """Of those who have left one."""
        keys = {rank: _WORD.format(rank) for rank in ranks}
        return {rank: Word.decode(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])}

    def awaited_word(self, rank: int) -> Word:
        """Waits for it."""
        return Word.decode(self._store.get(_WORD.format(rank)))

    def verdict(self) -> Verdict | None:
        return Verdict.decode(self._store.get(_VERDICT)) if self._store.check([_VERDICT]) else None

    def first(self, mine: Verdict) -> Verdict:
        """The first verdict of all ranks, which may be this one."""
        return Verdict.decode(self._store.compare_set(_VERDICT, "", mine.encode()))

    def leave(self, *, waits: bool) -> None:
        """Says so, and waits for all others to have said it: the store ends with the process that has it."""
        self._store.add(_LEFT, 1)
        while waits and self._store.add(_LEFT, 0) < self._world_size:
            time.sleep(0.02)

    def is_left(self) -> bool:
        """Whether a rank has come to the end of its work."""
        return self._store.add(_LEFT, 0) > 0


class Pulse:
    """Of one rank, whose words are brought here as often as this rank looks."""

    def __init__(self, now: float) -> None:
        self._count = -1
        self._since = self._looked = now

    def seconds(self, word: Word | None, now: float, pause: float) -> float:
        """Since its words have grown. Two looks more than `pause` apart: this process was stopped itself."""
        count = -1 if word is None else word.count
        if count != self._count or now - self._looked > pause:
            self._count, self._since = count, now
        self._looked = now
        return now - self._since
