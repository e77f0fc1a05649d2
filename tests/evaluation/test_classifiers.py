"""The accuracy of a run's average: on whichever samples, by however many ranks, and when the samples are broken."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from afm_scale.core.errors import ConfigError, DataError
from afm_scale.core.types import Batch
from afm_scale.data.description import LatentContent
from afm_scale.data.latents import LatentsConfig
from afm_scale.data.table import build_source
from afm_scale.data.toys.digits import held_out_digits
from afm_scale.data.toys.synthetic import SyntheticLatentsConfig
from afm_scale.evaluation.classifiers import (
    AccuracyConfig,
    ClassifierEvaluation,
    ClassifierEvaluationConfig,
    ClassifierReport,
    check_samples,
)
from afm_scale.packing.writer import Packing
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.plan import ParallelPlan
from afm_scale.run.build import build_plan, build_state
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.train.hooks.hook import HookList
from afm_scale.train.loop import train
from afm_scale.train.state import TrainState
from tests.program import SMALL_CLASSIFICATION
from tests.ranks import run_ranks

DIGITS = SyntheticLatentsConfig(global_batch=8, shape=(1, 8, 8), num_classes=10)  # random, but of the digits' form


def packed_digits(folder: Path, digits: Batch, *, broken: int | None = None) -> LatentsConfig:
    """Digits as latents with no deviation: exactly their pixels, which are multiples of 1/8."""
    content = LatentContent(shape=(1, 8, 8), vae="none", vae_sha256=sha256(b"").hexdigest(), scale=1.0)
    packing = Packing(folder, {}, content)
    packing.begin()
    with packing.shard(0) as writer:
        for number, (x, y) in enumerate(zip(digits.x, digits.y.tolist(), strict=True)):
            file = io.BytesIO()
            np.save(file, np.stack([x.numpy(), np.zeros_like(x.numpy())]).astype(np.float16))
            data = file.getvalue().replace(b"NUMPY", b"ARRAY") if number == broken else file.getvalue()
            writer.add(number, y, {"plain.npy": data, "mirrored.npy": data})
    packing.finish(1, [str(label) for label in range(10)])
    return LatentsConfig(global_batch=50, folder=folder, shape=(1, 8, 8), num_classes=10, vae="none", scale=1.0)


def small_run(plan_name: str, *overrides: str, steps: int = 60) -> tuple[TrainState, ParallelPlan]:
    """A classifier of digits that has begun to learn."""
    config = load(RunConfig, SMALL_CLASSIFICATION[0], (
        *SMALL_CLASSIFICATION[1:], "run.folder=unused", f"loop.steps={steps}", f"parallel.plan={plan_name}",
        "parallel.precision=fp64", "parallel.device=cpu", "data.global_batch=32", "average.decay=0.9",
        "optimizer.classifier.learning_rate=1e-2", *overrides,
    ))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    plan = build_plan(config, ranks)
    state = build_state(config, ranks, plan)
    train(state, plan, config.loop, HookList([]))
    return state, plan


def measured(plan_names: list[str], folder: Path, picture: Path) -> dict[tuple[str, str], dict[str, object]]:
    """The figures under each plan, on each kind of samples."""
    stream = LatentsConfig(
        global_batch=50, folder=folder, shape=(1, 8, 8), num_classes=10, vae="none", scale=1.0, mirror=False
    )
    found: dict[tuple[str, str], dict[str, object]] = {}
    for plan_name in plan_names:
        state, plan = small_run(plan_name)
        position = state.data.state_dict()

        def figures(state: TrainState = state, plan: ParallelPlan = plan, **settings: object) -> dict[str, float]:
            return ClassifierEvaluation(AccuracyConfig(**settings))(state.subject(plan, 1))

        report = ClassifierReport(num_samples=200)
        of_plan = {
            "digits": figures(),
            "other times": figures(seed=1),
            "stream": figures(held_out=stream, num_samples=359),
            "stream in other batches": figures(held_out=replace(stream, global_batch=90), num_samples=359),
            "random": figures(held_out=DIGITS, num_samples=256, num_buckets=2),
            "report": dict(report(state.subject(plan, 1), picture)),
        }
        place = {"seed": 0, "rank": plan.rank, "world_size": plan.world_size, "device": plan.device}
        for name, config in {"trained on random": DIGITS, "trained on a stream": stream}.items():
            source = build_source(config, **place)
            of_plan[name] = dict(report(replace(state, data=source).subject(plan, 1), picture))
            source.close()
        assert state.data.state_dict() == position
        found |= {(plan_name, name): values for name, values in of_plan.items()}
    return found


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict]]:
    """Of one rank and of both of two, under both plans."""
    folder = tmp_path_factory.mktemp("accuracy")
    packed_digits(folder / "digits", held_out_digits())
    pictures = [folder / f"{world_size}.png" for world_size in (1, 2)]
    one = run_ranks(1, measured, ["ddp"], folder / "digits", pictures[0], timeout=120)
    two = run_ranks(2, measured, ["ddp", "fsdp2"], folder / "digits", pictures[1], timeout=120)
    assert all(picture.stat().st_size > 0 for picture in pictures)
    return [("one rank", one[0]), ("rank 0 of two", two[0]), ("rank 1 of two", two[1])]


@pytest.mark.slow
def test_the_figures_depend_neither_on_the_ranks_nor_on_the_plan(figures: list[tuple[str, dict]]) -> None:
    (_, alone), *others = figures
    for who, found in others:
        for (plan, name), values in found.items():
            assert values == alone["ddp", name], f"{name} by {who} under {plan}"


@pytest.mark.slow
def test_they_are_of_the_samples_that_were_asked_for(figures: list[tuple[str, dict]]) -> None:
    found = {name: values for (_, name), values in figures[0][1].items()}
    digits = found["digits"]
    assert digits["accuracy_t0"] > 0.4 > 0.2 > digits["accuracy_t0.9-1.0"]
    assert len([name for name in digits if name.startswith("accuracy_t0.")]) == 10
    assert found["other times"]["accuracy_t0"] == digits["accuracy_t0"]
    assert found["other times"]["accuracy"] != digits["accuracy"]
    # The same 359 digits in another order: clean they are the same, and noised as hard.
    assert found["stream"]["accuracy_t0"] == digits["accuracy_t0"]
    assert found["stream"]["accuracy"] == pytest.approx(digits["accuracy"], abs=0.04)  # 3,590 guesses
    assert found["stream in other batches"] == found["stream"]
    assert all(abs(share - 0.1) < 0.08 for share in found["random"].values())  # nothing can be known of them
    assert len(found["random"]) == 4
    assert found["report"].pop("samples") == "200 held-out digits"
    assert found["report"].keys() == digits.keys()
    for name in ("trained on random", "trained on a stream"):
        assert found[name]["samples"] == "200 training samples"
    assert found["trained on a stream"]["accuracy_t0"] > 0.3


def told(*folders: Path) -> list[str]:
    """What a rank is told of samples that are broken, on it or on another rank."""
    state, plan = small_run("ddp", steps=0)
    messages = []
    for folder in folders:
        config = LatentsConfig(global_batch=50, folder=folder, shape=(1, 8, 8), num_classes=10, vae="none", scale=1.0)
        with pytest.raises(DataError) as caught:
            ClassifierEvaluation(AccuracyConfig(held_out=config, num_samples=359))(state.subject(plan, 1))
        messages.append(str(caught.value))
    return messages


@pytest.mark.slow
def test_samples_that_one_rank_cannot_read_end_all_ranks_with_one_message(tmp_path: Path) -> None:
    packed_digits(tmp_path / "broken", held_out_digits(), broken=77)
    first, second = run_ranks(2, told, tmp_path / "broken", tmp_path / "absent", timeout=60)
    assert first == second
    broken, absent = first
    assert "77" in broken and "absent" in absent


def recipe(*overrides: str) -> RunConfig:
    return load(RunConfig, "classifier_digits", overrides)


@pytest.mark.parametrize(("settings", "words"), [
    (["report.held_out={kind: synthetic, global_batch: 8}"], "report.held_out.shape"),
    (["report.held_out={kind: synthetic, global_batch: 8, shape: [1, 8, 8], num_classes: 9}"], "num_classes 9"),
    (["report.num_samples=0"], "num_samples: found 0"),
    (["report.num_buckets=0"], "num_buckets: found 0"),
    (["report={kind: digits}"], "report={kind: classifier}"),
    (["report={kind: mixture1d}"], "report={kind: classifier}"),
])
def test_a_report_that_cannot_be_made_is_told_before_training(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(recipe(*settings), world_size=1)
    assert words in str(caught.value)


def test_a_generator_has_no_report_of_a_classifier() -> None:
    with pytest.raises(ConfigError, match="report.kind 'classifier' cannot measure"):
        check(load(RunConfig, "digits_afm", ["report={kind: classifier}"]), world_size=1)


def test_evaluation_while_training_never_takes_from_a_stream_of_training_data(tmp_path: Path) -> None:
    stream = LatentsConfig(global_batch=8, folder=tmp_path)
    chosen = ClassifierEvaluationConfig(every_steps=10)
    with pytest.raises(ConfigError, match="hooks.evaluation.held_out is null"):
        check_samples(chosen, stream, "hooks.evaluation")
    check_samples(replace(chosen, held_out=stream), stream, "hooks.evaluation")
    check_samples(chosen, DIGITS, "hooks.evaluation")
    check_samples(ClassifierReport(), stream, "report")
