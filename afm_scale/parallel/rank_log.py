"""What a rank writes down as it leaves because others are gone: where it stood, and the last of the one it lost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ..core.files import append_regular
from ..core.words import Word
from . import flight


class RankLog:
    """RUN/rank_00001.log, and the collectives that torch's recorder knows of in rank_00001.collectives.json beside."""

    def __init__(self, path: Path | None, rank: int) -> None:
        self._path, self._rank = path, rank
        self._lost: list[str] = []

    def remember(self, lost: Mapping[int, Word]) -> str:
        """The stacks that ranks published last. Returns what a person is told of where they are."""
        self._lost = [
            f"the last that is known of rank {rank}, {word}:\n" + "".join(f"  {line}\n" for line in word.stack)
            for rank, word in lost.items()
        ]
        return "" if self._path is None else f". Its last stack is in {self._path}"

    def write(self, word: Word, lines: Iterable[str]) -> None:
        """`word` is this rank's own. Silent where it cannot: the run ends for something else."""
        if self._path is None:
            return
        head = f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self._rank}, {word}\n"
        with suppress(OSError), append_regular(self._path) as file:
            file.write("".join([head, *lines, *self._lost]).encode(errors="backslashreplace"))
        flight.keep(self._path.with_suffix(".collectives.json"))
