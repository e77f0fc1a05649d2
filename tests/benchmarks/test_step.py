"""tools/benchmark.py step: figures that follow from each other, and a reference that is the same method."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afm_scale.benchmarks.published_step import build_reference, reference_config
from afm_scale.benchmarks.step import StepBenchmark, benchmark_step_command
from afm_scale.benchmarks.timing import Built, Timing, time_steps
from afm_scale.core.errors import ConfigError
from afm_scale.core.types import Role
from afm_scale.parallel import compile as compile_module
from afm_scale.parallel.launch import Ranks
from afm_scale.run.build import build_plan, build_state
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.counting import step_flops, step_parts
from afm_scale.run.load import load
from afm_scale.train.hooks.hook import HookList, QuietHook, StepReport
from afm_scale.train.loop import train
from afm_scale.train.state import TrainState
from tests.equivalence import Layout, config_of
from tests.program import ROOT
from tests.ranks import run_ranks

SMALL = ("parallel.device=cpu", "report=null")


def test_the_command_s_figures_follow_from_each_other(tmp_path: Path) -> None:
    table = tmp_path / "step.txt"
    tool = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "step", "afm_1step_tiny", *SMALL]
    ended = subprocess.run(
        [*tool, "--steps", "3", "--warm-up", "1", "--reference", "--json", "--profile", str(table)],
        capture_output=True, text=True, timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["device"], found["ranks"], found["global_batch"], found["no_utilisation"]) == (
        "CPU", 1, 16, "this ran on the CPU"
    )
    assert [row["name"] for row in found["rows"]] == ["recipe", "reference"]
    for row in found["rows"]:
        assert len(row["seconds"]) == 3 and row["seconds_per_step"] == sorted(row["seconds"])[1] > 0
        assert row["images_per_second"] == pytest.approx(16 / row["seconds_per_step"])
        assert row["tflops_per_rank"] == pytest.approx(row["images_per_second"] * found["tflop_per_image"])
        assert row["utilisation"] is None and row["peak_memory_bytes"] > 2**27 and row["first_step_seconds"] > 0
    ours, theirs = found["rows"]
    assert theirs["recipe_to_reference"] == pytest.approx(ours["images_per_second"] / theirs["images_per_second"])
    assert (ours["settings"]["plan"], theirs["settings"]["plan"]) == ("fsdp2", "ddp")
    assert found["tflop_per_image"] == step_flops(load(RunConfig, "afm_1step_tiny", SMALL)) / 1e12
    assert "aten::addmm" in table.read_text()


def test_operations_of_a_step_counted_by_hand() -> None:
    """D's turn: G forward; D forward on 2.5 samples, and backward. G's turn: G forward and backward; D forward twice,
    and once backward to its input."""
    width, depth, tokens, values = 32, 2, 64, 4 * 4 * 4  # of a patch of 4 x 4 pixels with 4 channels

    def products(rows: int, asked: int) -> int:
        """Of a block with weights: two operations each. Keys and values; query, projection and MLP."""
        return rows * 2 * 2 * width**2 + asked * 2 * (1 + 1 + 8) * width**2

    def attention(rows: int, asked: int) -> int:
        return 2 * 2 * rows * asked * width

    condition = depth * 2 * 6 * width**2
    patches = 2 * tokens * values * width
    of_g = depth * (products(tokens, tokens) + attention(tokens, tokens)) + condition
    of_g += 2 * 2 * width**2 + 2 * tokens * width * values  # the final layer
    rows = tokens + 1
    of_d = (depth - 1) * products(rows, rows) + products(rows, 1) + 2 * width
    attended = (depth - 1) * attention(rows, rows) + attention(rows, 1)
    forward = of_d + attended + condition + patches

    # Backward every product is there twice, but for those of the patches: samples need no gradient.
    turn_of_d = (of_g + patches) + 2.5 * (3 * (of_d + attended + condition) + 2 * patches)
    # Of D's only the way to its input: weights once, attention twice still, and nothing of the condition.
    to_input = of_d + 2 * attended + patches
    turn_of_g = (3 * of_g + 2 * patches) + 2 * forward + to_input
    assert step_flops(load(RunConfig, "afm_1step_tiny", SMALL)) == turn_of_d + turn_of_g

    again = load(RunConfig, "afm_1step_tiny", [*SMALL, "objective.discriminator_steps=2"])
    assert step_flops(again) == 2 * turn_of_d + turn_of_g

    # In one pass D is shown 2.5 samples once, whose patches pass on a gradient, and G is run once.
    both = "discriminator+generator"
    assert step_parts(load(RunConfig, "afm_1step_tiny", [*SMALL, "objective.update=one_pass"])) == {
        (both, "generator forward"): of_g + patches,
        (both, "discriminator forward"): 2.5 * forward,
        (both, "discriminator backward"): 2.5 * (2 * (of_d + attended + condition) + 2 * patches),
        (both, "generator backward"): 2 * of_g + patches,
    }
    kept = load(RunConfig, "afm_1step_tiny", [*SMALL, "objective.token_share=0.5"])
    rows = tokens // 2 + 1
    of_d = (depth - 1) * products(rows, rows) + products(rows, 1) + 2 * width
    attended = (depth - 1) * attention(rows, rows) + attention(rows, 1)
    assert step_parts(kept)["discriminator", "discriminator forward"] == 2.5 * (of_d + attended + condition + patches)
    assert step_parts(load(RunConfig, "afm_1step_tiny", [*SMALL, "objective.penalty.terms=r1"]))[
        "discriminator", "discriminator forward"
    ] == 2.25 * forward


def test_operations_are_counted_by_part_and_no_step_is_taken(capsys: pytest.CaptureFixture) -> None:
    benchmark_step_command(StepBenchmark(recipe="afm_1step_tiny", overrides=SMALL, count=True), as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert "rows" not in answer and answer["parts"][-1]["part"] == "all"
    for figure in ("tflop", "units"):
        assert sum(row[figure] for row in answer["parts"][:-1]) == pytest.approx(answer["parts"][-1][figure])
    assert (answer["parts"][0]["part"], answer["parts"][0]["units"]) == ("generator forward", pytest.approx(1))
    benchmark_step_command(StepBenchmark(recipe="classifier_digits", count=True), as_json=False)
    assert "consistency-style" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--count takes no step"):
        StepBenchmark(recipe="afm_1step_tiny", count=True, reference=True)


class _Watch(QuietHook):
    """Losses and norms of each step, how many rows D's last block computed in each call, and the weights."""

    def __init__(self, judge: nn.Module) -> None:
        self.reports: list[dict[str, Tensor]] = []
        self.rows: list[int] = []
        judge.blocks[-1].mlp.register_forward_hook(lambda module, inputs, out: self.rows.append(out.shape[1]))

    def after_step(self, state: TrainState, report: StepReport) -> None:
        norms = {f"{name}/norm": norm for name, norm in report.grad_norms.items()}
        self.reports.append({**report.terms, **norms})


def played(config: RunConfig, built: Built) -> tuple[_Watch, TrainState]:
    state, plan = built
    watch = _Watch(state.players[Role.DISCRIMINATOR].module)
    train(state, plan, config.loop, HookList([watch]))
    return watch, state


STEPS = 3


def references_beside_ours() -> None:
    config = config_of("any step, augmented", Layout("ddp", 1, 1, settings=(f"loop.steps={STEPS}",)))
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    plan = build_plan(config, ranks)
    ours, state = played(config, (build_state(config, ranks, plan), plan))
    assert ours.rows == STEPS * 3 * [1]
    published = reference_config(config, None)
    tokens = 1 + (8 // config.model.discriminator.patch_size) ** 2
    for calls, number in (("one", 1), ("four", 4)):
        found, theirs = played(published, build_reference(published, ranks, calls))
        assert found.rows == STEPS * (number + 2) * [tokens]
        for mine, other in zip(ours.reports, found.reports, strict=True):
            assert mine.keys() == other.keys()
            for name, value in mine.items():
                torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-9, msg=f"{calls}: {name}")
        for role, player in state.players.items():
            weights = theirs.players[role].module.state_dict()
            for name, value in player.module.state_dict().items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9, msg=f"{calls}: {role} {name}")
            assert all("exp_avg" in of for of in theirs.players[role].optimizer.state.values())
            assert not any("exp_avg" in of for of in player.optimizer.state.values())


def test_the_reference_takes_the_same_steps_at_the_published_cost() -> None:
    run_ranks(1, references_beside_ours, timeout=120)


def freed_and_alike() -> Timing:
    """Both ranks report the slower one's figures, and nothing of the network is left."""
    rank = torch.distributed.get_rank()
    ranks = Ranks(rank=rank, local_rank=rank, world_size=2, device=torch.device("cpu"))
    compile_module.BACKEND = "eager"
    config = load(RunConfig, "afm_1step_tiny", (*SMALL, "parallel.fsdp2.policy=zero2", "parallel.compile=true"))
    weights: list[weakref.ref[Tensor]] = []

    def build(config: RunConfig) -> Built:
        plan = build_plan(config, ranks)
        state = build_state(config, ranks, plan)
        weights.extend(weakref.ref(weight) for weight in state.players[Role.GENERATOR].module.parameters())
        return state, plan

    timing = time_steps(config, ranks, build, warm_up=1, steps=2)
    assert len(weights) > 10 and not any(weight() is not None for weight in weights)
    return timing


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch.compile's
def test_every_rank_reports_the_slowest_and_frees_what_it_timed() -> None:
    first, second = run_ranks(2, freed_and_alike, timeout=120)
    assert first == second and len(first.seconds) == 2
    assert first.settings["compile"] and first.first_step_seconds > max(first.seconds)


@pytest.mark.parametrize(("recipe", "options", "message"), [
    ("afm_1step_tiny", {"steps": 0}, "--steps 0"),
    ("afm_1step_tiny", {"warm_up": 0}, "--warm-up 0 must be at least 1"),
    ("afm_1step_tiny", {"gpu": "v100"}, "--gpu v100: its peak is not known; known are a100"),
    ("afm_1step_tiny", {"reference_accumulation": 2}, "add --reference"),
    ("afm_1step_tiny", {"reference": True, "reference_accumulation": 0}, "must be at least 1"),
    ("afm_1step_tiny", {"reference": True, "reference_calls": "two"}, "wanted one or four"),
    ("afm_1step_tiny", {"profile": Path("nowhere/step.txt")}, "there is no folder nowhere"),
    ("afm_1step_tiny", {"reference": True, "reference_accumulation": 3}, "loop.accumulation"),
    ("digits_flow_matching", {"reference": True}, "is of objective 'afm', this recipe has 'flow_matching'"),
    ("classifier_digits", {"reference": True}, "is of objective 'afm', this recipe has 'classification'"),
])
def test_what_cannot_be_measured_is_refused(recipe: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        benchmark_step_command(StepBenchmark(recipe=recipe, overrides=SMALL, **options), as_json=False)
