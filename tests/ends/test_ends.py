"""A sample of ten of what `python -m tests.ends` tries, and that each outcome is seen; docs/ends.md has all."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import configurations, kills, surroundings
from .__main__ import judge
from .cases import Case
from .outcome import GOOD, Outcome, of_an_end

WANTED = ("surroundings: all three are closed, ranks: 1", "surroundings: TERM at middle, ranks: 1")
SAMPLE: list[Case] = [
    *[case for case in configurations.cases() if case.ranks == 1][40::67][:7],
    *[case for case in surroundings.cases() if str(case) in WANTED],
    *[case for case in kills.cases() if case.layout.ranks == 1 and 0.3 < case.share < 0.9][:1],
]


def test_the_sample_has_ten_cases() -> None:
    assert len(SAMPLE) == 10


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_run_ends_in_work_done_right_or_in_one_message(case: Case) -> None:
    verdict = judge(case)
    assert verdict is not None and verdict.outcome in GOOD, verdict


@pytest.mark.parametrize(("code", "told", "is_done", "outcome"), [
    (0, "", True, Outcome.DONE),
    (0, "", False, Outcome.WORK),
    (2, "error: no such recipe\n", False, Outcome.REFUSED),
    (2, "", False, Outcome.MESSAGE),
    (2, "error: one\nerror on rank 1: one\n", False, Outcome.MESSAGE),
    (2, "Traceback (most recent call last):\nerror: one\n", False, Outcome.TRACEBACK),
    (0, "Traceback (most recent call last):\n", True, Outcome.TRACEBACK),
    (None, "", False, Outcome.HANG),
    (-9, "", False, Outcome.KILLED),
    (1, "error: one\n", False, Outcome.CODE),
    (75, "stopped\n", False, Outcome.CODE),
])
def test_an_end_is_told_by_its_code_and_its_words(
    tmp_path: Path, code: int | None, told: str, is_done: bool, outcome: Outcome
) -> None:
    assert of_an_end(code, told, tmp_path, is_done=is_done).outcome is outcome
