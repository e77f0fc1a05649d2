"""Which numbers a setting takes, said where the setting is defined: `decay: Annotated[float, Range(0, 1)]`.

`core/typed.py` holds every value that is read to it, and `settings` prints it.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

LARGEST_WHOLE = 2**63 - 1  # what torch and the file formats hold


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` or `below` says otherwise.

    Of a list it is the range of each of its numbers, of a schedule that of every value it can take.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float | None = None  # instead of `low`: not itself included
    below: float | None = None  # instead of `high`

    def __contains__(self, number: float) -> bool:
        lowest = number > self.above if self.above is not None else number >= self.low
        highest = number < self.below if self.below is not None else number <= self.high
        limit = LARGEST_WHOLE if isinstance(number, int) else sys.float_info.max
        return lowest and highest and abs(number) <= limit

    def wanted(self, *, whole: bool) -> str:
        """In words, for a message: "a whole number of at least 1", "a number from 0 to 1"."""
        noun, words = "whole number" if whole else "number", str(self)
        if words == "finite":
            return f"a {noun} of at most 63 bits" if whole else "a finite number"
        return f"a {noun} {'of ' if words.startswith('at') else ''}{words}"

    def __str__(self) -> str:
        """In words: "from 0 to 1", "above 0, at most 1", "at least 1", "finite"."""
        if self.above is None and self.below is None and math.isfinite(self.low) and math.isfinite(self.high):
            return f"from {_shown(self.low)} to {_shown(self.high)}"
        low = f"above {_shown(self.above)}" if self.above is not None else f"at least {_shown(self.low)}"
        high = f"below {_shown(self.below)}" if self.below is not None else f"at most {_shown(self.high)}"
        bounded = [self.above is not None or self.low > -math.inf, self.below is not None or self.high < math.inf]
        words = [word for word, is_bound in zip((low, high), bounded, strict=True) if is_bound]
        return ", ".join(words) or "finite"


@dataclass(frozen=True)
class Text:
    """Texts of a length and a form, in the place of a `Range`."""

    longest: int  # letters
    form: str = r"(?s:.*)"  # a regular expression of the whole
    words: str = "text"  # what has that form

    def __contains__(self, text: str) -> bool:
        return len(text) <= self.longest and re.fullmatch(self.form, text) is not None

    def __str__(self) -> str:
        return f"{self.words} of at most {self.longest} letters"


MANY = 10**12  # steps of a run, samples of a data set
Count = Annotated[int, Range(1, MANY)]
Seed = Annotated[int, Range(0, LARGEST_WHOLE)]
Share = Annotated[float, Range(0, 1)]  # a probability too

FINITE = Range()
"""Any number there is. A schedule's values have it: the setting that is a schedule narrows it."""


@runtime_checkable
class Levels(Protocol):
    """A setting that takes several values in a run, as a schedule does."""

    def levels(self) -> dict[str, float]:
        """Numbers between which all values lie, by the names they are set by."""
        ...


def _shown(number: float) -> str:
    if math.isinf(number):
        return f"{number:g}"
    if number == LARGEST_WHOLE:
        return "2^63 - 1"
    return f"{int(number):_}" if number == int(number) and abs(number) <= MANY else f"{number:g}"
