from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from afm_scale.core.errors import ConfigError, DivergenceError
from afm_scale.core.typed import build
from afm_scale.core.types import Role
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.ddp import DDPPlan
from afm_scale.parallel.fsdp2 import FSDP2Plan
from afm_scale.parallel.kinds.fsdp2 import FSDP2Config
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.plan import ParallelPlan
from afm_scale.run.build import build_plan, build_state
from afm_scale.train.hooks.consistency import ConsistencyConfig, ConsistencyHook, digests
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import QuietHook, StepReport
from afm_scale.train.state import TrainState
from tests.equivalence import Layout, config_of, this_rank
from tests.ranks import run_ranks
from tests.train.hooks.small import run, small_state


def plan_of(kind: str, replicas: int) -> ParallelPlan:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    config = ParallelConfig(plan=kind, device="cpu", fsdp2=FSDP2Config(replicas=replicas))
    return DDPPlan(ranks, config) if kind == "ddp" else FSDP2Plan(ranks, config)


class OneBitOnTheLastRank(QuietHook):
    """Changes the last bit of one weight after a step."""

    def __init__(self, plan: ParallelPlan, step: int) -> None:
        self._plan = plan
        self._step = step

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if report.step == self._step and self._plan.rank == self._plan.world_size - 1:
            weight = self._plan.local_tensors(state.players[Role.GENERATOR].module)["mix.weight"]
            weight.view(torch.int32).flatten()[0] ^= 1


def _end(folder: Path, kind: str, replicas: int, spoilt_step: int) -> tuple[int, str]:
    plan = plan_of(kind, replicas)
    state, events = small_state(plan), EventLog(folder / "events.jsonl", enabled=plan.rank == 0)
    hooks = [OneBitOnTheLastRank(plan, spoilt_step), ConsistencyHook(plan, ConsistencyConfig(every_steps=2), events)]
    try:
        run(state, plan, hooks, steps=6)
    except DivergenceError as error:
        return state.step, str(error)
    return state.step, ""


def test_a_bit_that_differs_ends_the_run_on_all_ranks_with_the_name_of_the_tensor(tmp_path: Path) -> None:
    first, second = run_ranks(2, _end, tmp_path, "ddp", 1, 3)
    assert first == second
    assert first[0] == 4 and "generator.mix.weight at step 4 is not the same on rank 0 and on rank(s) 1," in first[1]
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["tensor"], event["differing"]) == ("inconsistency", "generator.mix.weight", [1])


def test_replicas_of_a_shard_are_compared_with_each_other(tmp_path: Path) -> None:
    found = run_ranks(4, _end, tmp_path, "fsdp2", 2, 3)
    assert len(set(found)) == 1 and found[0][0] == 4
    assert "generator.mix.weight" in found[0][1] and "on rank 1 and on rank(s) 3," in found[0][1]


@pytest.mark.parametrize(("kind", "spoilt_step"), [("ddp", 99), ("fsdp2", 3)])
def test_where_all_copies_are_equal_or_there_is_only_one_the_run_goes_on(
    tmp_path: Path, kind: str, spoilt_step: int
) -> None:
    assert run_ranks(2, _end, tmp_path, kind, 1, spoilt_step) == [(6, ""), (6, "")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_a_digest_changes_with_a_bit_and_with_the_order_and_not_with_the_layout(dtype: torch.dtype) -> None:
    values = torch.arange(12).reshape(3, 4).to(dtype)
    changed, swapped = values.clone(), values.flip(0)
    changed[1, 2] += 1
    kinds = {"same": values.t().contiguous().t(), "changed": changed, "swapped": swapped, "again": values}
    same, *others, again = digests(kinds)[:, 1].tolist()
    assert same == again and len({same, *others}) == 3


def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="every_steps: found 0, wanted a whole number from 1"):
        build(ConsistencyConfig, {"every_steps": 0})


def _of_all_plans() -> dict[str, str]:
    """What is said of every sharing plan before, and after a bit of rank 1 was changed in a weight held by both."""
    found = {}
    for name, settings in OTHER_PLANS.items():
        layout = Layout(name.split()[0], 2, 1, settings=(*settings, "parallel.precision=fp32"))
        plan = build_plan(config_of("flow matching", layout), this_rank(layout))
        state = build_state(config_of("flow matching", layout), this_rank(layout), plan)
        hook = ConsistencyHook(plan, ConsistencyConfig(), EventLog(Path("unused"), enabled=False))
        hook.look(state)
        with torch.no_grad():
            weight = plan.local_tensors(state.average.network)["x_embedder.proj.weight"]
            weight.view(torch.int32).flatten()[0] ^= plan.rank
        try:
            hook.look(state)
            found[name] = ""
        except DivergenceError as error:
            found[name] = str(error)
    return found


OTHER_PLANS = {
    "megatron": ("parallel.megatron.tensor=2",), "deepspeed 2": ("parallel.deepspeed.stage=2",),
    "deepspeed 3": ("parallel.deepspeed.stage=3",),
}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("megatron") is None or find_spec("deepspeed") is None, reason="not installed")
@pytest.mark.filterwarnings("ignore")  # of both packages, while they are imported
def test_other_plans_are_found_consistent_and_what_they_hold_whole_is_compared() -> None:
    for said in run_ranks(2, _of_all_plans, timeout=150):
        assert "average.x_embedder.proj.weight at step 0 is not the same" in said["megatron"]
        assert "average.x_embedder.proj.weight at step 0 is not the same" in said["deepspeed 2"]
        assert said["deepspeed 3"] == ""  # each rank has a part of its own
