"""How long another rank has said nothing new, by this rank's own clock."""

from __future__ import annotations

from ..core.words import Word


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
