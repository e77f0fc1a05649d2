"""`hooks.evaluation`: figures of the average while it trains, in the logs, and what is wrong told before the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_FAILURE, EXIT_USER_ERROR, ConfigError
from afm_scale.core.typed import build
from afm_scale.evaluation.features.extractor import PixelFeatures
from afm_scale.evaluation.reference import read_reference
from afm_scale.evaluation.samples import SampleEvaluationConfig
from tests.program import SMALL_AFM, SMALL_FLOW_MATCHING, end, train

QUICK = ("parallel.device=cpu", "checkpoint.every_steps=2", "hooks.metrics.every_steps=1")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=images)
    words = ["evaluate", folder / "images.npz", "--write-reference", folder / "reference.npz", "--features", "pixels"]
    assert main([*map(str, words), "--device", "cpu"]) == EXIT_DONE
    return folder / "reference.npz"


def evaluation(reference: Path, **changes: object) -> str:
    values = {"kind": "samples", "every_steps": 2, "num_samples": 70, "seed": 5, "reference": str(reference), **changes}
    settings = ", ".join(f"{name}: {value}" for name, value in {"features": "{kind: pixels}", **values}.items())
    return f"hooks.evaluation={{{settings}}}"


def evaluations_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "evaluation"]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_what_the_command_says_of_its_checkpoints_also_when_it_is_resumed(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ["train", *SMALL_AFM, *QUICK, evaluation(reference), f"run.folder={folder}"]
    for steps in (3, 6):
        assert main([*words, f"loop.steps={steps}"]) == EXIT_DONE
    assert "evaluation at step 4: frechet_distance" in capfd.readouterr().err

    found = evaluations_of(folder)
    assert [one["step"] for one in found] == [2, 4, 6]
    rows = {row["step"]: row for row in rows_of(folder)}
    for one in found:
        figures = {name: rows[one["step"]][f"evaluation/{name}"] for name in one["figures"]}
        assert figures == one["figures"] and set(figures) == {"frechet_distance", "precision", "recall"}
        assert rows[one["step"]]["evaluation/seconds"] == pytest.approx(one["seconds"], abs=1e-3)
    assert not [name for name in rows[5] if name.startswith("evaluation/")]

    checkpoint = folder / "checkpoints" / "step_00000006"
    capfd.readouterr()
    command = ["evaluate", checkpoint, "--num", 70, "--seed", 5, "--features", "pixels", "--reference", reference]
    assert main([*map(str, command), "--json"]) == EXIT_DONE
    figures = json.loads(capfd.readouterr().out)["figures"]
    assert {name: figures[name] for name in found[-1]["figures"]} == pytest.approx(found[-1]["figures"], rel=1e-9)


def test_evaluating_leaves_the_training_as_it_is(reference: Path, tmp_path: Path) -> None:
    for name, more in (("with", [evaluation(reference)]), ("without", [])):
        words = [*SMALL_FLOW_MATCHING, *QUICK, "loop.steps=4", f"run.folder={tmp_path / name}", *more]
        assert main(["train", *words]) == EXIT_DONE
    losses = [[row["generator/total"] for row in rows_of(tmp_path / name)] for name in ("with", "without")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_two_sharded_ranks_measure_what_one_does(reference: Path, tmp_path: Path) -> None:
    """Weights of two ranks differ from those of one in their last bits, and so do a few pixels."""
    for ranks in (1, 2):
        process = train(
            SMALL_AFM, tmp_path / str(ranks), "loop.steps=2", "parallel.plan=fsdp2", evaluation(reference), ranks=ranks
        )
        code, _, stderr = end(process)
        assert code == EXIT_DONE, stderr
    one, two = (evaluations_of(tmp_path / str(ranks)) for ranks in (1, 2))
    assert len(two) == 1 and two[0]["figures"] == pytest.approx(one[0]["figures"], rel=1e-2)


@pytest.mark.parametrize(("settings", "words"), [
    ({"reference": "absent.npz"}, ["absent.npz"]),
    ({"features": "{kind: inception, weights: absent.pth}"}, ["absent.pth", "SHA-256"]),
    ({"vae": "somewhere"}, ["hooks.evaluation.vae", "pixels"]),
    ({"num_samples": 3}, ["hooks.evaluation", "3"]),
    ({"kind": "classifier"}, ["hooks.evaluation"]),
], ids=str)
def test_a_mistake_ends_the_run_before_its_first_step(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: dict[str, object], words: list[str]
) -> None:
    folder = tmp_path / "run"
    chosen = evaluation(settings.pop("reference", reference), **settings)
    code = main(["train", *SMALL_AFM, *QUICK, "loop.steps=2", chosen, f"run.folder={folder}"])
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == EXIT_USER_ERROR and [word for word in words if word not in line] == [], line
    assert not (folder / "metrics.jsonl").exists()


def test_a_generator_cannot_be_evaluated_as_a_classifier(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = "hooks.evaluation={kind: classifier, every_steps: 2}"
    assert main(["train", *SMALL_AFM, *QUICK, chosen, f"run.folder={tmp_path}"]) == EXIT_USER_ERROR
    assert "hooks.evaluation.kind=samples" in capfd.readouterr().err


def test_a_reference_of_other_images_ends_the_run_before_its_first_step(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = "data={kind: synthetic, shape: [4, 8, 8], num_classes: 3, global_batch: 8}"
    words = ["train", *SMALL_AFM, *QUICK, data, evaluation(reference), f"run.folder={tmp_path}"]
    assert main(words) == EXIT_USER_ERROR
    assert "hooks.evaluation.vae" in capfd.readouterr().err
    small = tmp_path / "small.npz"
    np.savez(small, arr_0=np.zeros((9, 4, 4, 1), np.uint8))
    stored = tmp_path / "stored.npz"
    command = ["evaluate", small, "--write-reference", stored, "--features", "pixels", "--device", "cpu"]
    assert main([*map(str, command)]) == EXIT_DONE
    assert read_reference(stored, PixelFeatures()).pool.count == 9
    capfd.readouterr()
    assert main(["train", *SMALL_AFM, *QUICK, evaluation(stored), f"run.folder={tmp_path}"]) == EXIT_USER_ERROR
    assert "[1, 4, 4]" in capfd.readouterr().err


def test_samples_that_are_not_finite_end_the_run(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The weights of step 1 are finite and their loss was; what they give is not."""
    rates = "optimizer.generator.learning_rate=1e30"
    chosen = evaluation(reference, every_steps=1)
    words = ["train", *SMALL_AFM, "average.decay=0", rates, chosen, f"run.folder={tmp_path}", "parallel.device=cpu"]
    assert main(words) == EXIT_FAILURE
    assert "sample 0 is not of finite numbers" in capfd.readouterr().err


@pytest.mark.parametrize(("changes", "words"), [
    ({"every_steps": 0}, "every_steps: found 0"), ({"num_samples": 1, "members": 0}, "num_samples: found 1"),
    ({"members": 3}, "3 neighbours"), ({"members": -1}, "members: found -1"),
    ({"neighbours": 0}, "neighbours: found 0"),
])
def test_settings_that_allow_no_figures_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(SampleEvaluationConfig, {"every_steps": 1, "reference": "unused.npz", **changes})
