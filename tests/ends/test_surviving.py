"""A sample of the kills and stops that `python -m tests.ends.surviving` tries 200 of; docs/surviving.md."""

from __future__ import annotations

import pytest

from .__main__ import judge
from .kills import FOUR, LAYOUTS, SURVIVING, Case, Layout, drawn
from .outcome import GOOD
from .surviving import cases, table


def in_the_middle(layout: Layout, kills: int, stops: int) -> list[Case]:
    """Of those that are drawn, the first ones at instants where there is something to lose."""
    found = [case for case in drawn(layout, 9, 9, stopping=("TERM",)) if 0.3 < case.share < 0.95]
    return [case for name, count in (("KILL", kills), ("TERM", stops))
            for case in [one for one in found if one.signal == name][:count]]


SAMPLE = [*in_the_middle(LAYOUTS[1], 1, 1), *in_the_middle(FOUR, 1, 0)]  # launchers: tests/launchers


def test_there_are_200_and_three_of_such_are_tried_here() -> None:
    assert len(cases()) == len(set(map(str, cases()))) == 200
    assert [sum(case.signal == name for case in cases()) for name in ("KILL", "TERM")] == [100, 100]
    assert len(SAMPLE) == 3


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)  # on a busy machine
@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_run_that_was_killed_or_stopped_has_the_weights_of_an_undisturbed_one(case: Case) -> None:
    verdict = judge(case)
    assert verdict is not None and verdict.outcome in GOOD, verdict
    assert verdict.exit_seconds is not None and verdict.exit_seconds < 60
    assert "SIG" in table({case: verdict}) or case.layout not in SURVIVING
