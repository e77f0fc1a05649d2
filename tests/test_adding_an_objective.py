"""Adding an objective is a file and a line of the table: a newcomer's objectives go through the whole command.

Nothing but `OBJECTIVES` is touched, by one entry: the loop, the checks, checkpoints, sampling and estimates ask the
configuration what it needs.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from afm_scale.__main__ import main
from afm_scale.checkpoint.manifest import resolve_checkpoint
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR, ConfigError
from afm_scale.models.layers import initial_weights
from afm_scale.objectives.table import OBJECTIVES
from afm_scale.parallel.launch import Ranks
from afm_scale.run.build import build_plan, build_state
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.counting import step_flops
from afm_scale.run.load import load
from afm_scale.run.networks import build_learner
from afm_scale.train.hooks.hook import HookList
from afm_scale.train.loop import train
from tests.ranks import run_ranks
from tests.toys.denoising import Denoising, DenoisingConfig
from tests.toys.followed import Followed, FollowedConfig
from tests.toys.mean_velocity import MeanVelocity, MeanVelocityConfig

TOYS = {DenoisingConfig: Denoising, FollowedConfig: Followed, MeanVelocityConfig: MeanVelocity}
SMALL = (
    "parallel.device=cpu", "parallel.plan=ddp", "report=null", "hooks.metrics.tensorboard=false",
    "hooks.metrics.every_steps=1", "hooks.samples=null", "data.global_batch=8", "model.generator.hidden_size=16",
    "model.generator.depth=2", "model.generator.num_heads=2", "optimizer.generator.learning_rate=1e-2",
)


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newcomer's line."""
    for config, objective in TOYS.items():
        monkeypatch.setitem(OBJECTIVES, config, objective)


def trained(folder: Path, *overrides: str, recipe: str = "digits_flow_matching", steps: int = 3) -> Path:
    words = [f"run.folder={folder}", f"loop.steps={steps}", *SMALL, *overrides]
    assert main(["train", recipe, *words]) == EXIT_DONE
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved(folder: Path, step: int | None = None) -> dict[str, Tensor]:
    where = folder if step is None else folder / "checkpoints" / f"step_{step:08}"
    return read_tensors(resolve_checkpoint(where), "")


def configured(*overrides: str) -> RunConfig:
    return load(RunConfig, "digits_flow_matching", ["run.folder=unused", *SMALL, *overrides])


def test_a_plain_regression_trains_draws_goes_on_and_is_counted(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "objective={kind: denoising}")
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    trained(folder, "objective={kind: denoising}", steps=4)
    assert rows(folder)[-1]["step"] == 4
    assert main(["sample", str(folder), "--out", str(tmp_path / "drawn"), "--num", "4"]) == EXIT_DONE
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 4
    config = configured("objective={kind: denoising}")
    assert step_flops(config) == step_flops(configured("objective={kind: flow_matching}")) > 0


def test_what_a_newcomer_does_not_need_is_refused_in_the_usual_words() -> None:
    judged = "model.discriminator={kind: mlp, width: 8}"
    for overrides, message in (
        ([judged], "objective.kind 'denoising' is a game of one, but the recipe has a discriminator"),
        (["model.classifier={kind: mlp, width: 8}"], "objective.kind 'denoising' has no guidance that could ask it"),
        (["optimizer.generator=null"], "objective.kind 'denoising' needs model.generator and optimizer.generator"),
        (["report={kind: classifier}"], "cannot measure what objective.kind 'denoising' trains"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(configured("objective={kind: denoising}", *overrides), 1)


def test_an_unknown_kind_is_told_the_newcomers_name() -> None:
    with pytest.raises(ConfigError, match="'denoising', 'followed', 'mean_velocity'.*did you mean 'denoising'"):
        configured("objective={kind: denoisin}")


@pytest.fixture
def followed(tmp_path: Path) -> tuple[str, ...]:
    """Overrides of a recipe whose objective asks a teacher, which is trained here."""
    teacher = trained(tmp_path / "teacher", "average.decay=0", "objective={kind: flow_matching}")
    return f"objective={{kind: followed, teacher: {teacher}}}", "checkpoint.every_steps=1", "checkpoint.keep_last=100"


def test_a_second_average_follows_its_own_decay(tmp_path: Path, followed: tuple[str, ...]) -> None:
    published = ("average.decay=0.9", "average.warm_up=false")
    folder = trained(tmp_path / "run", *followed, *published, "parallel.precision=fp64", steps=4)
    start = dict(initial_weights(build_learner(configured()), configured().loop.seed, "generator"))
    weights = [start, *(saved(folder, step) for step in range(1, 5))]
    for prefix, decay in (("average.", 0.9), ("averages.target.", 0.5)):
        for name in start:
            history = [values[name if values is start else f"generator.{name}"].double() for values in weights]
            expected = decay**4 * history[0] + sum(
                (1 - decay) * decay ** (4 - step) * history[step] for step in range(1, 5)
            )
            torch.testing.assert_close(saved(folder)[f"{prefix}{name}"].double(), expected, rtol=1e-12, atol=1e-14)


def test_the_objective_asks_its_average_and_its_frozen_network(tmp_path: Path, followed: tuple[str, ...]) -> None:
    folder = trained(tmp_path / "run", *followed)
    terms = [(row["generator/target"], row["generator/teacher"]) for row in rows(folder)]
    assert terms[0][0] == 0 and terms[1][0] > 0, "the average starts as a copy of the generator and follows it"
    assert terms[0][1] > 0, "the teacher has learnt already"
    assert not any("teacher" in name for name in saved(folder)), "what is frozen comes from its own run"


def test_a_run_with_a_second_average_goes_on_bit_for_bit(tmp_path: Path, followed: tuple[str, ...]) -> None:
    straight = trained(tmp_path / "straight", *followed, steps=6)
    trained(tmp_path / "parts", *followed, steps=3)
    parts = saved(trained(tmp_path / "parts", *followed, steps=6))
    assert parts.keys() == saved(straight).keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in saved(straight).items())


def test_a_run_begins_its_second_average_at_the_weights_it_is_given(
    tmp_path: Path, followed: tuple[str, ...]
) -> None:
    given = f"run.initialise_from={tmp_path / 'teacher'}"
    folder = trained(tmp_path / "run", *followed, given, steps=0)
    found, teacher = saved(folder), saved(tmp_path / "teacher")
    for prefix in ("generator.", "averages.target."):
        for name, tensor in teacher.items():
            if name.startswith("generator."):
                assert torch.equal(found[prefix + name.removeprefix("generator.")], tensor)


def test_a_frozen_network_that_does_not_fit_is_refused(
    tmp_path: Path, followed: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    other = trained(tmp_path / "other", "objective={kind: denoising}")
    for teacher, message in (
        (tmp_path / "nowhere", "objective.teacher: "),
        (other, f"objective.teacher {other} is a run of objective 'denoising'; wanted 'flow_matching'"),
    ):
        words = [f"run.folder={tmp_path / 'run'}", *SMALL, f"objective={{kind: followed, teacher: {teacher}}}"]
        assert main(["train", "digits_flow_matching", *words]) == EXIT_USER_ERROR
        assert message in capsys.readouterr().err


def test_frozen_networks_and_averages_are_counted(followed: tuple[str, ...]) -> None:
    plain = step_flops(configured("objective={kind: flow_matching}"))
    assert step_flops(configured(*followed)) == pytest.approx(plain * (3 + 1 + 1) / 3, rel=0.05)


MEAN_VELOCITY = ("objective={kind: mean_velocity}", "model.generator.times=both")


def test_a_derivative_in_forward_mode_trains_and_is_counted(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", *MEAN_VELOCITY)
    derivatives = [row["generator/derivative"] for row in rows(folder)]
    assert derivatives[0] == 0 and derivatives[-1] > 0, "the last layer starts at zero"
    counted, plain = (step_flops(configured(*MEAN_VELOCITY, f"objective.kind={kind}"))
                      for kind in ("mean_velocity", "flow_matching"))
    # Forward and backward are three, and so is a derivative with its value: torch multiplies by the weights' tangents
    # too, which are zero.
    assert counted == pytest.approx(plain * (3 + 3) / 3, rel=0.1)


@pytest.mark.parametrize(("overrides", "message"), [
    (["parallel.plan=megatron"], "the layers of parallel.plan 'megatron' have none; set parallel.plan to ddp or fsdp2"),
    (["parallel.plan=deepspeed", "parallel.deepspeed.stage=3"], "stage 3 have none; set parallel.deepspeed.stage=2"),
    (["parallel.precision=fp8"], "the products of parallel.precision fp8 have none; set parallel.precision=bf16"),
])
def test_a_plan_without_derivatives_in_forward_mode_is_refused(overrides: list[str], message: str) -> None:
    check(configured("objective={kind: flow_matching}", *overrides), 2)
    with pytest.raises(ConfigError, match="objective.kind 'mean_velocity' takes derivatives in forward mode, but "):
        check(configured(*MEAN_VELOCITY, *overrides), 2)
    with pytest.raises(ConfigError, match=message):
        check(configured(*MEAN_VELOCITY, *overrides), 2)


def updated(layouts: list[tuple[str, ...]]) -> list[dict[str, Tensor]]:
    """Weights and averages after three steps of this rank, one of RANK's world."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    OBJECTIVES.update(TOYS)
    found = []
    for layout in layouts:
        config = configured("loop.steps=3", *layout)
        check(config, world_size)
        ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
        plan = build_plan(config, ranks)
        state = build_state(config, ranks, plan)
        train(state, plan, config.loop, HookList([]))
        kept = {n: w for n, w in state.tensors(plan).items() if not n.startswith("optimizer.")}
        found.append({n: (w.full_tensor() if isinstance(w, DTensor) else w).detach().clone() for n, w in kept.items()})
    return found


def check_same(objective: tuple[str, ...], layouts: list[tuple[str, ...]], averages: set[str]) -> None:
    """Every layout, on two ranks, ends as one rank does."""
    ((reference,),) = run_ranks(1, updated, [(*objective, "parallel.precision=fp64")])
    assert {name.rpartition("x_embedder")[0] for name in reference if name.endswith("x_embedder.proj.bias")} == averages
    settings = [(*objective, "parallel.precision=fp64", *layout) for layout in layouts]
    for of_rank in run_ranks(2, updated, settings, timeout=200):
        for layout, tensors in zip(layouts, of_rank, strict=True):
            assert tensors.keys() == reference.keys()
            differences = {name: float((tensor - reference[name]).abs().max()) for name, tensor in tensors.items()}
            assert max(differences.values()) < 1e-9, (layout, differences)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler for the CPU")
@pytest.mark.filterwarnings("ignore")  # torch's compiler imports and touches what torch itself warns of
def test_compiled_blocks_step_aside_for_a_derivative(tmp_path: Path) -> None:
    """Else torch.compile would refuse: nothing compiled takes a derivative in forward mode."""
    found = []
    for compiled in ("true", "false"):
        folder = trained(tmp_path / compiled, *MEAN_VELOCITY, f"parallel.compile={compiled}")
        found.append([(row["generator/total"], row["generator/derivative"]) for row in rows(folder)])
    assert found[0] == [pytest.approx(row, rel=1e-3) for row in found[1]]


@pytest.mark.slow
def test_updates_by_a_derivative_do_not_depend_on_ranks_and_plan() -> None:
    check_same(MEAN_VELOCITY, [
        ("parallel.plan=ddp", "loop.accumulation=2"), ("parallel.plan=fsdp2",),
        ("parallel.plan=fsdp2", "parallel.fsdp2.policy=full", "parallel.recompute=full"),
        ("parallel.plan=fsdp2", "parallel.fsdp2.policy=zero2", "loop.accumulation=2"),
    ], {"generator.", "average."})


@pytest.mark.slow
def test_a_second_average_and_a_teacher_do_not_depend_on_ranks_and_plan(followed: tuple[str, ...]) -> None:
    check_same(followed, [
        ("parallel.plan=ddp",), ("parallel.plan=fsdp2", "parallel.fsdp2.policy=full"),
        ("parallel.plan=fsdp2", "parallel.fsdp2.policy=zero2", "loop.accumulation=2"),
    ], {"generator.", "average.", "averages.target."})
