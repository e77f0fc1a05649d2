from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import pytest
import torch

from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.manifest import read_manifest
from afm_scale.core.errors import CheckpointError, DivergenceError
from afm_scale.core.types import Role
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.checkpoint import CheckpointHook
from afm_scale.train.hooks.divergence import DivergenceConfig, DivergenceGuard
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import Hook, QuietHook, StepReport
from afm_scale.train.hooks.stop import StopHook
from afm_scale.train.state import TrainState
from tests.ranks import run_ranks
from tests.train.hooks.small import run, small_plan, small_state


def checkpoints(folder: Path, config: CheckpointConfig) -> CheckpointManager:
    plan = small_plan()
    return CheckpointManager(
        folder / "checkpoints", config, rank=plan.rank, world_size=plan.world_size, description={}
    )


def hooks(folder: Path, config: CheckpointConfig, manager: CheckpointManager | None = None) -> list[Hook]:
    plan = small_plan()
    events = EventLog(folder / "events.jsonl", enabled=plan.rank == 0)
    manager = manager or checkpoints(folder, config)
    guard = DivergenceGuard(plan, DivergenceConfig(every_steps=1000), events)
    failures = Failures()
    stop = StopHook(plan, failures, events)
    looks = [lambda state: guard.look()]
    return [guard, CheckpointHook(plan, config, manager, before_save=looks, failures=failures, events=events), stop]


def saved(folder: Path) -> list[int]:
    paths = [path for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    return sorted(read_manifest(path).step for path in paths)


class Spoil(QuietHook):
    """Makes weights of this rank not a number after a step, so that the next step's loss is."""

    def __init__(self, step: int) -> None:
        self._step = step

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if report.step == self._step:
            with torch.no_grad():
                next(state.players[Role.GENERATOR].module.parameters()).fill_(math.nan)


def test_checkpoints_appear_every_k_steps_and_at_the_end(tmp_path: Path) -> None:
    plan = small_plan()
    run(small_state(plan), plan, hooks(tmp_path, CheckpointConfig(every_steps=2, keep_last=9)), steps=5)
    assert saved(tmp_path) == [2, 4, 5]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event["step"]) for event in events] == [("save", 2), ("save", 4), ("save", 5)]


def test_a_step_saved_already_is_not_saved_again_at_the_end(tmp_path: Path) -> None:
    plan = small_plan()
    run(small_state(plan), plan, hooks(tmp_path, CheckpointConfig(every_steps=2, keep_last=9)), steps=4)
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_no_checkpoint_holds_the_result_of_a_step_that_was_not_finite(tmp_path: Path) -> None:
    plan = small_plan()
    run_hooks = [Spoil(3), *hooks(tmp_path, CheckpointConfig(every_steps=2, keep_last=9))]
    with pytest.raises(DivergenceError, match="at step 4"):
        run(small_state(plan), plan, run_hooks, steps=9)
    assert saved(tmp_path) == [2]


def _diverge(folder: Path) -> str:
    plan = small_plan()
    config = CheckpointConfig(every_steps=2, keep_last=9)
    spoil = [Spoil(3)] if plan.rank == 1 else []
    with pytest.raises(DivergenceError) as caught:
        run(small_state(plan), plan, [*spoil, *hooks(folder, config)], steps=9)
    return str(caught.value)


def test_a_divergence_of_one_rank_lets_the_save_under_way_finish_and_saves_no_more(tmp_path: Path) -> None:
    first, second = run_ranks(2, _diverge, tmp_path)
    assert first == second
    assert "at step 4" in first
    assert saved(tmp_path) == [2]


def _fill_the_disk(folder: Path, asynchronous: bool) -> tuple[int, str]:
    plan = small_plan()
    state = small_state(plan)
    config = CheckpointConfig(every_steps=2, keep_last=9, asynchronous=asynchronous)
    manager = checkpoints(folder, config)

    class FullOnRank1(QuietHook):
        def after_step(self, state: TrainState, report: StepReport) -> None:
            if report.step == 3 and plan.rank == 1:
                manager.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    with pytest.raises(CheckpointError) as caught:
        run(state, plan, [FullOnRank1(), *hooks(folder, config, manager)], steps=2000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return state.step, str(caught.value)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_on_one_rank_stops_all_and_leaves_the_older_checkpoint(
    tmp_path: Path, asynchronous: bool
) -> None:
    first, second = run_ranks(2, _fill_the_disk, tmp_path, asynchronous)
    assert first == second
    assert first[0] < 2000
    assert "checkpoint of step 4 could not be written" in first[1] and "File too large" in first[1]
    assert saved(tmp_path) == [2]
