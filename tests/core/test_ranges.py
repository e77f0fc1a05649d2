"""A range holds what it says it holds, and says it in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.core.ranges import FINITE, LARGEST_WHOLE, Range
from afm_scale.core.schedules import Schedule
from afm_scale.core.typed import build


@pytest.mark.parametrize(("allowed", "inside", "outside"), [
    (Range(0, 1), [0, 1, 0.5], [-1e-9, 1 + 1e-9, -1, 2]),
    (Range(above=0, high=1), [1e-300, 1], [0, -0.0, 1.1]),
    (Range(0, below=1), [0, 0.999], [1, 1.0]),
    (Range(1), [1, LARGEST_WHOLE, 1e300], [0, 0.99, LARGEST_WHOLE + 1]),
    (FINITE, [0, -1e308, 1e308], []),
])
def test_its_ends_decide_and_nothing_but_numbers_of_this_machine_is_inside(
    allowed: Range, inside: list[float], outside: list[float]
) -> None:
    assert [number for number in inside if number not in allowed] == []
    never = [math.nan, math.inf, -math.inf, 10**400, -(10**400)]
    assert [number for number in [*outside, *never] if number in allowed] == []


@pytest.mark.parametrize(("allowed", "whole", "words"), [
    (Range(0, 1), False, "a number from 0 to 1"),
    (Range(1, 10_000), True, "a whole number from 1 to 10_000"),
    (Range(1), True, "a whole number of at least 1"),
    (Range(0, below=1), False, "a number of at least 0, below 1"),
    (Range(above=0, high=0.5), False, "a number above 0, at most 0.5"),
    (Range(above=0), False, "a number above 0"),
    (Range(0, LARGEST_WHOLE), True, "a whole number from 0 to 2^63 - 1"),
    (FINITE, False, "a finite number"),
    (FINITE, True, "a whole number of at most 63 bits"),
])
def test_it_says_in_words_what_is_wanted(allowed: Range, whole: bool, words: str) -> None:
    assert allowed.wanted(whole=whole) == words


@dataclass(frozen=True)
class Settings:
    pair: Annotated[tuple[float, float], Range(0, below=1)] = (0.0, 0.9)
    each: tuple[Annotated[int, Range(1, 9)], ...] = ()
    rate: Annotated[Schedule, Range(0, 1)] | None = None
    by_name: dict[str, Annotated[int, Range(1)]] | None = None
    perhaps: Annotated[int, Range(1)] | None = None


@pytest.mark.parametrize(("value", "message"), [
    ({"pair": [0, 1]}, "pair[1]: found 1, wanted a number of at least 0, below 1"),
    ({"each": [3, 0]}, "each[1]: found 0, wanted a whole number from 1 to 9"),
    ({"rate": "2e0"}, "rate: found 2, wanted a number from 0 to 1"),
    ({"rate": {"kind": "constant", "value": -1}}, "rate.value: found -1, wanted a number from 0 to 1"),
    ({"rate": {"kind": "cosine", "start": 1, "end": -0.5, "steps": 3}}, "rate.end: found -0.5, wanted"),
    ({"rate": {"kind": "piecewise", "points": [[0, 1], [2, 3]]}}, "rate.points[1][1]: found 3, wanted"),
    ({"rate": {"kind": "piecewise", "points": [[-1, 1]]}}, "rate.points[0][0]: found -1, wanted a whole number of at"),
    ({"by_name": {"a": 0}}, "by_name.a: found 0, wanted"),
    ({"perhaps": 10**30}, "perhaps: found 1000000000000000000000000000000, wanted a whole number of at least 1"),
])
def test_numbers_are_held_to_it_wherever_in_a_value_they_lie(value: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Settings, value)
    assert str(caught.value).startswith(message)


def test_null_is_no_number() -> None:
    assert build(Settings, {"rate": None, "perhaps": None}) == Settings()
