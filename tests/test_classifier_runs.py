"""A classifier's run as a person meets it: it learns, goes on, is refused where it has no place, and guides."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from afm_scale.__main__ import main
from afm_scale.checkpoint.manifest import read_manifest, resolve_checkpoint
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.core.errors import EXIT_DONE, EXIT_FAILURE, EXIT_USER_ERROR
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.counting import demand_of, step_flops
from afm_scale.run.load import load
from tests.program import SMALL_AFM

pytestmark = pytest.mark.slow

SIZE = ("model.classifier.hidden_size=32", "model.classifier.num_heads=2")
SHORT = (
    "loop.steps=250", "data.global_batch=64", "average.decay=0.95", "parallel.device=cpu", "parallel.plan=ddp",
    "hooks.metrics.tensorboard=false", "hooks.evaluation.every_steps=100", "checkpoint.every_steps=200",
    "optimizer.classifier.learning_rate=3e-3",
)
GUIDED = (
    *SMALL_AFM, "parallel.device=cpu", "parallel.plan=ddp", "loop.steps=3", "hooks.metrics.every_steps=1",
    "objective.guidance={kind: flow, weight: 0.1, low: 0.0, high: 1.0}",
    "model.classifier={kind: dit, patch_size: 4, hidden_size: 32, depth: 2, num_heads: 2}",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    assert main(["train", "classifier_digits", *SIZE, *SHORT, f"run.folder={folder}"]) == EXIT_DONE
    return folder


def quality(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["quality"]


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def the_error(capfd: pytest.CaptureFixture[str], *arguments: str | Path, wanted: int = EXIT_USER_ERROR) -> str:
    capfd.readouterr()
    code = main([*map(str, arguments)])
    stderr = capfd.readouterr().err
    assert code == wanted and "Traceback" not in stderr, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    return line


def test_a_short_run_knows_digits_that_it_has_not_seen(trained: Path) -> None:
    found = quality(trained)
    assert found["samples"] == "359 held-out digits"
    assert found["accuracy_t0"] > 0.85 and found["accuracy_t0.0-0.1"] > 0.85  # 0.92 and 0.93 here; by guessing: 0.1
    assert found["accuracy_t0.4-0.5"] > 0.4  # 0.68
    assert 0.05 < found["accuracy_t0.9-1.0"] < 0.3
    buckets = [value for name, value in found.items() if "-" in name]
    assert len(buckets) == 10 and found["accuracy"] == pytest.approx(sum(buckets) / 10, rel=1e-12)
    assert (trained / "samples" / "final.png").read_bytes().startswith(b"\x89PNG")


def test_its_logs_hold_the_loss_the_accuracy_and_the_evaluations(trained: Path) -> None:
    metrics = rows(trained)
    assert {"classifier/total", "classifier/accuracy", "classifier/grad_norm", "classifier/learning_rate"} <= {
        *metrics[0]
    }
    assert not [name for name in metrics[0] if name.startswith(("generator", "discriminator"))]
    assert metrics[-1]["classifier/total"] < 0.8 * metrics[0]["classifier/total"]
    assert metrics[-1]["images_seen"] == 250 * 64
    evaluations = [event for event in rows(trained, "events.jsonl") if event["kind"] == "evaluation"]
    assert [event["step"] for event in evaluations] == [100, 200]
    assert evaluations[0]["figures"].keys() == quality(trained).keys() - {"samples"}
    assert evaluations[1]["figures"]["accuracy_t0"] > 0.5


def test_a_new_run_may_start_with_its_weights(trained: Path, tmp_path: Path) -> None:
    start = ("loop.steps=0", f"run.folder={tmp_path}", f"run.initialise_from={trained}")
    assert main(["train", "classifier_digits", *SIZE, *SHORT, *start]) == EXIT_DONE
    assert quality(tmp_path) == quality(trained)


def test_the_same_command_goes_on_with_it(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(trained, tmp_path / "own"))
    command = ["train", "classifier_digits", *SIZE, *SHORT, f"run.folder={own}"]
    assert main(command) == EXIT_DONE
    assert "resumed at step 250" in capfd.readouterr().err and quality(own) == quality(trained)
    assert main([*command, "loop.steps=251"]) == EXIT_DONE
    assert read_manifest(resolve_checkpoint(own)).scalars["images_seen"] == 251 * 64


def test_images_cannot_be_drawn_from_it(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = the_error(capfd, "sample", trained, "--out", tmp_path / "images", "--num", "1")
    assert "holds a classifier" in line and "wanted a generator" in line
    assert not (tmp_path / "images").exists()


def test_a_run_that_diverges_names_the_classifier(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rates = "optimizer.classifier.learning_rate={kind: piecewise, points: [[2, 1e-3], [2, 1e30], [3, 1e30]]}"
    line = the_error(
        capfd, "train", "classifier_digits", *SIZE, *SHORT, "hooks.evaluation=null", rates, "loop.steps=20",
        f"run.folder={tmp_path}", wanted=EXIT_FAILURE,
    )
    assert "the classifier's total was not finite at step 4" in line
    assert "optimizer.classifier.learning_rate" in line


def test_it_guides_by_its_folder_as_by_a_file_of_its_average(trained: Path, tmp_path: Path) -> None:
    average = read_tensors(resolve_checkpoint(trained), "average.")
    file = tmp_path / "average.safetensors"
    save_file({name.removeprefix("average."): value.contiguous() for name, value in average.items()}, file)
    terms = []
    for name, weights in (("by_folder", trained), ("by_file", file)):
        folder = tmp_path / name
        assert main(["train", *GUIDED, f"model.classifier.weights={weights}", f"run.folder={folder}"]) == EXIT_DONE
        terms.append([row["generator/guidance"] for row in rows(folder)])
    assert len(terms[0]) == 3 and terms[0] == terms[1]
    assert all(0.1 * math.log(10) / 4 < value < 1 for value in terms[0])  # the generator knows nothing yet
    manifest = read_manifest(resolve_checkpoint(tmp_path / "by_folder"))
    assert not [name for name in manifest.tensors if "classifier" in name]  # it comes from its own run, every time


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a generator, no step long."""
    folder = tmp_path_factory.mktemp("generator") / "run"
    assert main(["train", *SMALL_AFM, "loop.steps=0", "parallel.device=cpu", f"run.folder={folder}"]) == EXIT_DONE
    return folder


@pytest.mark.parametrize(("settings", "words"), [
    (["model.classifier.weights={generator}"], ["objective 'afm'", "wanted 'classification'"]),
    (["model.classifier.weights={absent}"], ["{absent}", "no such file"]),
    (["model.classifier.weights={empty}"], ["model.classifier.weights", "{empty}"]),
    (["model.classifier.weights={text}"], ["{text}", "no safetensors file"]),
    (["model.classifier.weights={trained}", "model.classifier.hidden_size=16"], ["hidden_size 32 there", "16 here"]),
    (["model.classifier.weights={trained}", "model.classifier.num_heads=4"], ["num_heads 2 there", "num_heads 4 here"]),
    (["model.classifier.weights={trained}", "data={kind: synthetic, global_batch: 8, shape: [1, 8, 8]}",
      "report=null"], ["num_classes 10", "1000"]),
])
def test_what_cannot_guide_is_told(
    trained: Path, generator: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: list[str],
    words: list[str],
) -> None:
    places = {name: tmp_path / name for name in ("absent", "empty", "text")} | {
        "trained": trained, "generator": generator
    }
    places["empty"].mkdir()
    places["text"].write_text("no weights")

    def filled(text: str) -> str:
        for name, place in places.items():
            text = text.replace(f"{{{name}}}", str(place))
        return text

    line = the_error(capfd, "train", *GUIDED, *map(filled, settings), f"run.folder={tmp_path / 'run'}")
    assert [word for word in map(filled, words) if word not in line] == []


@pytest.mark.parametrize(("settings", "words"), [
    (["model.classifier=null"], ["model.classifier", "optimizer.classifier"]),
    (["optimizer.classifier=null"], ["model.classifier", "optimizer.classifier"]),
    (["model.classifier.weights=some.safetensors"], ["model.classifier.weights", "run.initialise_from"]),
    (["hooks.samples={every_steps: 5}"], ["hooks.samples=null"]),
    (["model.flow=some"], ["model.flow=null"]),
    (["model.generator={kind: mlp, width: 8}", "model.discriminator={kind: mlp, width: 8}"],
     ["model.generator=null model.discriminator=null"]),
    (["run.initialise_from={generator}"], ["another model", "classifier.", "run.initialise_from"]),
    (["objective={kind: flow_matching}", "report=null", "hooks.evaluation=null"],
     ["model.generator and optimizer.generator"]),
])
def test_a_mistake_in_a_recipe_of_a_classifier_is_told(
    generator: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: list[str], words: list[str]
) -> None:
    settings = [text.replace("{generator}", str(generator)) for text in settings]
    line = the_error(
        capfd, "train", "classifier_digits", *settings, f"run.folder={tmp_path / 'run'}", "parallel.device=cpu"
    )
    assert [word for word in words if word not in line] == []


def test_a_step_of_the_published_classifier_costs_what_its_layers_say() -> None:
    config = load(RunConfig, "classifier_b2", [])
    width, depth, tokens = 768, 12, 257  # 16 x 16 patches and the learnt token
    whole = tokens * (4 + 8) * width**2
    last = (2 * tokens + 1 + 1 + 8) * width**2  # keys and values of all tokens, the rest of the one that is read
    linear = (depth - 1) * whole + last + depth * 6 * width**2 + 256 * 16 * width + width * 1000
    embedder = 256 * width + width**2
    attention = (depth - 1) * 2 * tokens**2 * width + 2 * tokens * width
    forward = 2 * (linear + embedder + attention)
    assert step_flops(config) == pytest.approx(3 * forward, rel=0.02)
    found = demand_of(config, "classifier_b2", step_seconds=0.5, gpu="h100", utilisation=0.4)
    assert found.turns == 1 and found.images_per_second == 512
