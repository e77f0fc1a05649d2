"""What MeanFlow, alpha-Flow and TwinFlow cannot be asked for is refused before anything is built, with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import ConfigError
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from tests.program import run

MEAN, ALPHA, TWIN = "digits_mean_flow", "digits_alpha_flow", "digits_twin_flow"
FLOOR = "objective.alpha.ends_in=floor"


def configured(recipe: str, *overrides: str) -> RunConfig:
    return load(RunConfig, recipe, ["run.folder=unused", "parallel.device=cpu", *overrides])


@pytest.mark.parametrize(("recipe", "overrides", "message"), [
    (MEAN, ["parallel.plan=megatron"], "have none; set parallel.plan to ddp or fsdp2, or set objective.deriv"),
    (ALPHA, ["parallel.plan=deepspeed", "parallel.deepspeed.stage=3"], "or set objective.alpha.ends_in=floor"),
    (MEAN, ["objective.derivative=central", "parallel.precision=bf16"],
     "'central' over 0.005 divides .* 'bf16' leaves little but rounding; set parallel.precision=fp32, or obj"),
    (MEAN, ["objective.derivative=central", "parallel.precision=tf32"], "set parallel.precision=fp32"),
    (ALPHA, ["parallel.precision=bf16"], "objective.alpha of 0.005 .* set parallel.precision=tf32, or objective.alpha"),
    (TWIN, ["parallel.precision=bf16"], "objective.interval of 0.01 .* or objective.interval=0.02"),
    (MEAN, ["model.generator.times=source"], "needs a generator that is told both times.*set model.generator.times"),
    (TWIN, ["model.generator.negative_times=false"], "shows the generator negative times.*negative_times=true"),
    (MEAN, ["objective.class_dropout=0.1"], "cannot be told; set model.generator.null_class=true"),
    (MEAN, ["objective.guidance={omega: 2.0}"], "objective.guidance asks .* without a class.*set objective.class_drop"),
    (TWIN, ["objective.guidance_weight=0.5"], "objective.guidance_weight asks .* without a class"),
    (ALPHA, ["objective.class_dropout=0.3", "objective.flow_matching_share=0.2", "model.generator.null_class=true"],
     "class_dropout 0.3 is more than objective.flow_matching_share 0.2"),
    (TWIN, ["data.global_batch=16", "loop.accumulation=4"], "cuts the batch into quarters.*found 2: use 4 at least"),
    ("digits_afm", ["sampling.num_steps=4"], "num_steps: found 4 .* nothing of where it is; wanted one, or times"),
    ("digits_afm", ["sampling.also_reported=[1, 2]"], "sampling.also_reported: found 2 network evaluations"),
    (TWIN, ["objective.warm_up_steps=6000"], "warm_up_steps 6000 is not less than loop.steps 6000"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_the_setting_that_would_do(
    recipe: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(configured(recipe, *overrides), 2)


@pytest.mark.parametrize(("recipe", "overrides"), [
    (MEAN, ["objective.derivative=central", "parallel.plan=megatron"]),
    (ALPHA, [FLOOR, "parallel.plan=deepspeed", "parallel.deepspeed.stage=3"]),
    (ALPHA, [FLOOR, "objective.alpha.cut=0.02", "parallel.precision=bf16"]),
    (MEAN, ["parallel.precision=bf16"]),  # a derivative in forward mode divides by nothing
    (TWIN, ["parallel.plan=megatron", "objective.interval=0.02"]),
])  # fmt: skip
def test_the_ways_out_lead_out(recipe: str, overrides: list[str]) -> None:
    check(configured(recipe, *overrides), 2)


def test_a_curriculum_that_the_run_does_not_reach_the_end_of_is_refused_by_the_command() -> None:
    code, _, told = run("train", ALPHA, "run.folder=unused", "objective.alpha={kind: sigmoid, begin: 0, end: 400000}")
    assert code == 2 and "does not end in it; begin and end are shares of loop.steps" in told


def test_weights_that_are_told_times_by_other_sinusoids_are_refused_by_their_name(tmp_path: Path) -> None:
    words = ["report=null", "hooks.samples=null", "hooks.metrics.tensorboard=false", "parallel.device=cpu",
             "parallel.plan=ddp", "data.global_batch=8", "model.generator.hidden_size=16"]
    flow = tmp_path / "flow"
    assert main(["train", "digits_flow_matching", f"run.folder={flow}", "loop.steps=1", *words]) == 0
    begin = (MEAN, f"run.folder={tmp_path / 'run'}", "loop.steps=0", f"run.initialise_from={flow}", *words)
    code, _, told = run("train", *begin)
    assert code == 2 and "sinusoids of 'dit'" in told and "set model.generator.time_embedding=dit" in told
    assert main(["train", *begin, "model.generator.time_embedding=dit"]) == 0
