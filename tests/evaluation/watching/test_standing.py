from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afm_scale.core.history import history
from afm_scale.evaluation.watching.standing import SILENCE_SECONDS, standing_of
from tests.evaluation.watching.runs import START, written

SIGNAL = {"kind": "signal", "signal": "SIGTERM", "step": 40}
FAILED = {"kind": "failed", "step": 60, "why": "rank 1 was lost"}
DIVERGED = {"kind": "divergence", "step": 7, "player": "generator", "term": "total", "rank": 1}


@pytest.mark.parametrize(("events", "beat", "state", "told"), [
    ([START], 1.0, "goes on", "process 4242 on node1 since 2026-11-27T03:00:00+00:00 (2 rank(s))"),
    ([START, SIGNAL, dict(START, step=40)], 1.0, "goes on", "process 4242"),
    ([START], SILENCE_SECONDS + 60, "silent", "has given no sign for 100 seconds: killed, or its machine is gone"),
    ([START, SIGNAL], None, "stopped", "by SIGTERM at step 40: the same command goes on from its checkpoint"),
    ([START, FAILED], None, "failed", "at step 60: rank 1 was lost"),
    ([START, DIVERGED], None, "failed", "divergence at step 7: player generator, term total, rank 1"),
    ([START, SIGNAL, dict(START, step=40)], None, "silent", "it has ended without a word"),
    ([], None, "not begun", "there is no start in its events"),
])
def test_a_run_stands_by_who_holds_it_or_else_by_its_last_word(
    events: list[dict[str, Any]], beat: float | None, state: str, told: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "run", events, seconds_since_beat=beat)
    found = standing_of(folder, history(events), 100)
    assert found.state == state and told in found.why


def test_a_run_is_done_when_its_summary_is_of_its_last_step(tmp_path: Path) -> None:
    """One that was finished, and then given more steps, is not."""
    folder = written(tmp_path / "run")
    folder.summary.write_text('{"step": 100}')
    assert standing_of(folder, [START], 100).state == "done"
    assert standing_of(folder, [START], 200).state == "silent"
    folder.summary.write_text("[torn")
    assert standing_of(folder, [START], 100).state == "silent"


def test_without_a_word_in_the_events_the_lowest_rank_with_a_log_speaks(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    for rank in (2, 1):
        folder.rank_log(rank).write_text(
            f"2026-11-26 04:00:00 rank {rank}, an older one\n2026-11-27 04:00:00 rank {rank}, in all_reduce\n  stack\n"
        )
    found = standing_of(folder, [START], 100)
    assert (found.state, found.why) == ("failed", "rank_00001.log: 2026-11-27 04:00:00 rank 1, in all_reduce")
