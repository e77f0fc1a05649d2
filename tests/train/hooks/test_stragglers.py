"""Which rank is slow is found from when each has begun the collectives, and by one rule."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from afm_scale.core.run_folder import RunFolder
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import QuietHook, StepReport
from afm_scale.train.hooks.stragglers import StragglersConfig, StragglersHook, own_times, slow_ranks
from afm_scale.train.state import TrainState
from tests.ranks import run_ranks
from tests.train.hooks.small import run, small_plan, small_state, stop_for

SLOW, SECONDS = 1, 0.3


def test_the_own_times_of_a_rank_are_those_that_it_does_not_wait_for_others():
    begun = torch.tensor([[0.0, 1.0, 5.0], [0.0, 4.0, 4.5]], dtype=torch.float64)
    assert own_times(begun).tolist() == [1.0 + 1.0, 4.0 + 0.5]  # all go on at 0, at 4, at 5
    ahead = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 4.0]], dtype=torch.float64)
    assert own_times(ahead).tolist() == [1.0, 4.0]  # the first rank did not wait for the second one's 3


def test_a_rank_is_slow_by_a_share_of_a_step_beyond_the_median_of_the_others():
    assert slow_ranks([1.0, 1.1, 1.0, 1.3], seconds=1.3, share=0.2) == [3]
    assert slow_ranks([1.0, 1.1, 1.0, 1.2], seconds=1.3, share=0.2) == []
    assert slow_ranks([0.1, 0.5], seconds=0.5, share=0.25) == [1]
    assert slow_ranks([0.001, 0.005], seconds=0.005, share=0.25) == []  # a step so short is disturbed by anything


class Sleepy(QuietHook):
    """From step 4 to 12 one rank sleeps in every step: where does not matter."""

    def __init__(self, rank: int) -> None:
        self._is_slow = rank == SLOW

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if self._is_slow and 4 <= report.step < 12:
            time.sleep(SECONDS)


def train_with_a_slow_rank(folder: str) -> None:
    plan, failures, places = small_plan(), Failures(), RunFolder(Path(folder))
    events = EventLog(places.events, enabled=plan.rank == 0)
    hook = StragglersHook(
        StragglersConfig(every_steps=2), rank=plan.rank, world_size=plan.world_size, folder=places, events=events,
        failures=failures,
    )
    run(small_state(plan), plan, [hook, Sleepy(plan.rank), stop_for(failures)], steps=20)


def test_a_rank_with_a_planted_sleep_is_named_once(tmp_path):
    run_ranks(3, train_with_a_slow_rank, str(tmp_path), timeout=120)
    folder = RunFolder(tmp_path)
    named = [event for event in folder.read_events() if event["kind"] == "straggler"]
    assert [event["rank"] for event in named if 4 < event["step"] <= 12] == [SLOW], named
    assert named[0]["own_seconds"] > SECONDS / 2 and named[0]["others_median"] < named[0]["own_seconds"] / 2, named
    rows = [json.loads(line) for line in folder.ranks.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    assert all(len(row["own"]) == len(row["data"]) == 3 for row in rows)
    # By the rule, in two looks in a row. On a full machine the look before the first sleep may suspect a rank as well.
    suspected = [slow_ranks(row["own"], row["seconds"], StragglersConfig().share) for row in rows]
    assert [row["slow"] for row in rows] == [
        [rank for rank in seen if rank in before] for before, seen in zip([[], *suspected], suspected, strict=False)
    ]
    assert {8, 10, 12} <= {row["step"] for row in rows if SLOW in row["slow"]}, rows
