"""What is missing or does not fit is refused by `train` and `show` alike, before anything is built or written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_USER_ERROR
from afm_scale.run import build
from tests.data.small import packed_images

CLASSIFIER = "model.classifier={kind: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2, weights: %s}"
GUIDANCE = "objective.guidance={kind: flow, weight: 0.1, low: 0.0, high: 0.1}"
FEATURES = "hooks.evaluation={kind: samples, every_steps: 5, reference: README.md, features: {%s}}"
IMAGES = "data={kind: webdataset, folder: %s, global_batch: 8%s}"


@pytest.mark.parametrize(("recipe", "settings", "words"), [
    ("mixture1d_afm", ["report=null", IMAGES % ("absent", ", size: 256, num_classes: 10")], ["absent/dataset.json"]),
    ("mixture1d_afm", [IMAGES % ("{packed}", "")], ["report.kind 'mixture1d'", "shape", "report=null"]),
    ("digits_afm", ["data={kind: synthetic, shape: [2, 8, 8], num_classes: 10, global_batch: 8}"], ["'digits'"]),
    ("digits_afm", ["data={kind: synthetic, shape: [1, 8, 8], num_classes: 9, global_batch: 8}"], ["num_classes 10"]),
    ("mixture2d_afm", ["data.distribution.centres=[[0, 0]]"], ["report.kind 'mixture2d'", "num_classes 9"]),
    ("digits_afm", ["hooks.metrics.wandb={project: x}"], ["hooks.metrics.wandb", "pip install"]),
    pytest.param(
        "digits_afm", ["parallel.device=cuda"], ["parallel.device", "no GPU"],
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU"),
    ),
    ("digits_afm", ["model.generator.patch_size=3"], ["patches of 3"]),
    ("digits_afm", [FEATURES % "kind: torchscript, file: absent.pt"], ["absent.pt is not there"]),
    ("digits_afm", [FEATURES % "kind: classifier, checkpoint: absent"], ["absent"]),
    ("digits_afm", [FEATURES % "kind: inception, weights: absent.pt"], ["absent.pt is not there"]),
    ("digits_afm", ["hooks.evaluation={kind: samples, every_steps: 5, reference: absent.npz}"], ["absent.npz"]),
    ("digits_afm", [GUIDANCE, CLASSIFIER % "absent.safetensors"], ["absent.safetensors: no such file"]),
    ("digits_afm", ["run.resume_from=absent"], ["absent"]),
    ("digits_afm", ["run.initialise_from=absent"], ["absent"]),
    ("classifier_digits", ["report.held_out={kind: mnist, global_batch: 8}"], ["held_out"]),
])
def test_train_and_show_refuse_it_with_the_same_words_before_anything_is_built(
    recipe: str, settings: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(build, "build_plan", never)
    if any("{packed}" in setting for setting in settings):
        packed_images(tmp_path / "packed", size=8)
    said = []
    for command in ("train", "show"):
        arguments = [setting.replace("{packed}", str(tmp_path / "packed")) for setting in settings]
        assert main([command, recipe, f"run.folder={tmp_path / 'run'}", *arguments]) == EXIT_USER_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        said.append(line)
    assert said[0] == said[1] and all(word in said[0] for word in words), said
    assert not (tmp_path / "run").exists()
