"""Checkpoints that commit 7cad6c0 wrote are what they were: read, drawn from, trained on, asked as guides.

tests/golden/checkpoints/about.json says how they were made; NAME.safetensors beside it holds the images that commit
drew of each, and its average two updates later. Another processor rounds otherwise: hence the tolerances.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from afm_scale.checkpoint.manifest import resolve_checkpoint
from afm_scale.checkpoint.tensors import digest, read_tensors

from .program import end, run, train

OLD = Path(__file__).parent / "golden" / "checkpoints"
RUNS = json.loads((OLD / "about.json").read_text())["runs"]
GENERATORS = [name for name in RUNS if name != "classifier"]


@pytest.mark.parametrize("name", RUNS)
def test_its_tensors_are_those_that_were_saved(name: str) -> None:
    assert digest(resolve_checkpoint(OLD / name)) == RUNS[name]["digest_at_step_3"]


@pytest.mark.parametrize("name", GENERATORS)
def test_it_draws_the_images_it_drew(name: str, tmp_path: Path) -> None:
    steps = "4" if name == "flow_matching" else "1"
    code, _, told = run(
        "sample", OLD / name, "--out", tmp_path, "--num", "20", "--seed", "5", "--steps", steps,
        "--npz", tmp_path / "samples.npz",
    )
    assert code == 0, told
    recorded = load_file(OLD / f"{name}.safetensors")
    with np.load(tmp_path / "samples.npz") as samples:
        assert np.array_equal(samples["labels"], recorded["labels"].numpy())
        difference = samples["arr_0"].astype(int) - recorded["images"].numpy().astype(int)
    assert np.abs(difference).max() <= 1  # a grey level, where a rounding falls


@pytest.mark.parametrize("name", RUNS)
def test_training_goes_on_as_it_went_on(name: str, tmp_path: Path) -> None:
    about = RUNS[name]
    shutil.copytree(OLD / name, tmp_path / "run")
    code, _, told = end(train((about["recipe"], *about["overrides"]), tmp_path / "run", "loop.steps=5"))
    assert code == 0 and "resumed at step 3" in told, told
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row, recorded in zip(rows, about["losses"][3:], strict=True):
        assert {key: row[key] for key in recorded} == pytest.approx(recorded, rel=1e-4)
    recorded = load_file(OLD / f"{name}.safetensors")
    average = read_tensors(resolve_checkpoint(tmp_path / "run"), "average.")
    assert {f"step_5.{key}" for key in average} - recorded.keys() == {"step_5.average.pos_embed"}
    for key, value in recorded.items():
        if key.startswith("step_5."):
            # AdamW divides by the root of the second moment: of a gradient that is rounding alone (of a key's bias)
            # it makes a step of its own, which is another one on a processor with other kernels (2e-5 was seen).
            torch.testing.assert_close(average[key.removeprefix("step_5.")], value, rtol=0, atol=5e-5)


def test_a_run_may_begin_from_its_state_or_from_its_weights(tmp_path: Path) -> None:
    about = RUNS["afm"]
    recipe = (about["recipe"], *about["overrides"])
    code, _, told = end(train(recipe, tmp_path / "on", f"run.resume_from={OLD / 'afm'}", "loop.steps=4"))
    assert code == 0 and "resumed at step 3" in told, told
    code, _, told = end(train(recipe, tmp_path / "new", f"run.initialise_from={OLD / 'afm'}", "loop.steps=1"))
    assert code == 0 and "new run with the weights of" in told, told


def test_it_guides_and_judges(tmp_path: Path) -> None:
    about = RUNS["afm"]
    small = [f"model.classifier.{key}" for key in ("hidden_size=8", "depth=1", "num_heads=2")]
    code, _, told = end(train(
        ("digits_afm_guided", *about["overrides"], *small), tmp_path / "guided", f"run.initialise_from={OLD / 'afm'}",
        f"model.classifier.weights={OLD / 'classifier'}", "loop.steps=1",
    ))
    assert code == 0, told
    code, _, told = end(train(
        (about["recipe"], *about["overrides"]), tmp_path / "by_flow", f"model.flow={OLD / 'flow_matching'}",
        "objective.guidance={kind: velocity, weight: 1.0, low: 0.0, high: 0.5}", "loop.steps=1",
    ))
    assert code == 0, told
    code, out, told = run(
        "evaluate", OLD / "afm", "--features", "classifier", "--weights", OLD / "classifier", "--num", "40",
        "--write-reference", tmp_path / "statistics.npz", "--json",
    )
    assert code == 0 and json.loads(out)["features"].startswith("classifier "), told
