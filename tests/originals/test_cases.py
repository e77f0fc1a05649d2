"""A thin selection of what `python -m tests.originals` tries, and that a wrong end is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .cases import Case, judge
from .every import all_cases
from .of_folders import source
from .pictures import BASIC, LOOKS, plain

CASES = all_cases()
SELECTED = CASES[3::20]
ORDINARY = Case(kind="", name="", make=source(BASIC), looks=LOOKS)


@pytest.mark.parametrize("case", SELECTED, ids=str)
def test_an_odd_original_is_packed_as_it_is_or_refused_in_one_message(case: Case) -> None:
    verdict = judge(case)
    assert verdict.is_good, verdict


def test_no_case_is_there_twice() -> None:
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names)) >= 150


def test_what_is_wrong_with_a_packed_set_is_seen() -> None:
    wrong = {
        "classes": replace(ORDINARY, classes=("bee", "ant", "cat")),
        "no sample of 'cat' looks": replace(ORDINARY, looks=[*LOOKS[:3], ("cat", plain(5))]),
        "samples too many": replace(ORDINARY, looks=LOOKS[1:]),
        "changes": replace(ORDINARY, changes={"turned": 1}),
        "left out": replace(ORDINARY, left_out={"is a link": 1}),
        "files, of which": replace(ORDINARY, files=5),
    }
    assert judge(ORDINARY).came_to == "packed"
    for words, case in wrong.items():
        verdict = judge(case)
        assert verdict.came_to == "packed wrongly" and words in verdict.words
    assert judge(replace(ORDINARY, looks=())).came_to == "packed wrongly"
