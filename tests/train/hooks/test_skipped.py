from __future__ import annotations

import json
import os
from pathlib import Path

from afm_scale.data.source import Skipped
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.metrics import MetricsConfig, MetricsHook, Row
from afm_scale.train.hooks.skipped import SkippedHook
from tests.ranks import run_ranks
from tests.train.hooks.small import report, run, small_plan, small_state, stop_for

BROKEN = Skipped("shard-0.tar, sample 7", "is broken", "shard-1.tar, sample 8")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(folder: Path, step: int = 0, *, rank: int = 0, world_size: int = 1) -> SkippedHook:
    hook, state = SkippedHook(folder, rank=rank, world_size=world_size, failures=Failures()), small_state(small_plan())
    state.step = step
    hook.on_start(state)
    return hook


def test_what_was_skipped_is_a_line_each_with_the_step_and_the_rank(tmp_path: Path) -> None:
    hook, state = start(tmp_path / "skipped", rank=2, world_size=3), small_state(small_plan())
    hook.after_step(state, report(5, skipped=(BROKEN, BROKEN)))
    hook.after_step(state, report(6))
    hook.after_step(state, report(7, skipped=(BROKEN,)))
    found = lines(tmp_path / "skipped" / "rank_00002.jsonl")
    assert [line["step"] for line in found] == [5, 5, 7]
    assert found[0] == {
        "step": 5, "rank": 2, "place": "shard-0.tar, sample 7", "reason": "is broken",
        "substitute": "shard-1.tar, sample 8",
    }


def test_a_run_that_skips_nothing_leaves_no_folder(tmp_path: Path) -> None:
    hook = start(tmp_path / "skipped")
    hook.after_step(small_state(small_plan()), report(1))
    assert not (tmp_path / "skipped").exists()


def test_a_resumed_run_forgets_later_lines_those_of_ranks_that_are_no_more_too(tmp_path: Path) -> None:
    state = small_state(small_plan())
    for rank in range(5):
        hook = start(tmp_path, rank=rank, world_size=5)
        for step in (1, 2, 3):
            hook.after_step(state, report(step, skipped=(BROKEN,)))
    for rank in range(2):
        start(tmp_path, step=2, rank=rank, world_size=2).after_step(state, report(3, skipped=(BROKEN,)))
    steps = [[line["step"] for line in lines(tmp_path / f"rank_{rank:05d}.jsonl")] for rank in range(5)]
    assert steps == [[1, 2, 3], [1, 2, 3], [1, 2], [1, 2], [1, 2]]


def test_the_loop_hands_every_step_what_its_source_skipped(tmp_path: Path) -> None:
    plan, state = small_plan(), small_state(small_plan())
    turns = iter([[BROKEN], [], [BROKEN, BROKEN]])
    state.data.take_skipped = lambda: next(turns)
    failures = Failures()
    run(state, plan, [SkippedHook(tmp_path, rank=0, world_size=1, failures=failures), stop_for(failures)], steps=3)
    assert [line["step"] for line in lines(tmp_path / "rank_00000.jsonl")] == [1, 3, 3]


class Rows(list):
    def start(self, step: int) -> None:
        pass

    def write(self, row: Row) -> None:
        self.append(row)

    def close(self) -> None:
        pass


def _counts(folder: Path) -> list[int]:
    plan, rank, rows = small_plan(), int(os.environ["RANK"]), Rows()
    hook = MetricsHook(plan, MetricsConfig(every_steps=2), [rows] if rank == 0 else [], Failures())
    state = small_state(plan)
    hook.on_start(state)
    for step in (1, 2, 3, 4):
        hook.after_step(state, report(step, skipped=(BROKEN,) * (rank if step < 4 else 0)))
    return [row["data_skipped"] for row in rows]


def test_a_row_of_the_metrics_counts_what_all_ranks_skipped_since_the_last(tmp_path: Path) -> None:
    assert run_ranks(3, _counts, tmp_path) == [[2 * (0 + 1 + 2), 0 + 1 + 2], [], []]
