from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afm_scale.__main__ import main
from afm_scale.checkpoint.manifest import resolve_checkpoint
from afm_scale.checkpoint.tensors import digest, read_tensors
from afm_scale.core import packages
from afm_scale.core.errors import EXIT_DONE, CheckpointError, ConfigError
from afm_scale.core.typed import build
from afm_scale.evaluation.features.extractor import (
    ClassifierFeaturesConfig,
    FeaturesConfig,
    InceptionConfig,
    PixelsConfig,
    TorchScriptConfig,
)
from afm_scale.run.features import build_extractor
from tests.evaluation.small_features import random_inception_weights, saved_script
from tests.program import QUIET, SMALL_FLOW_MATCHING

SMALL_CLASSIFIER = (
    "classifier_digits", *QUIET, "model.classifier.hidden_size=16", "model.classifier.depth=2",
    "model.classifier.num_heads=2",
)


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=[2, 3])


def trained(folder: Path, *arguments: str) -> Path:
    steps = ("loop.steps=2", "checkpoint.every_steps=2", "parallel.device=cpu")
    assert main(["train", *arguments, *steps, f"run.folder={folder}"]) == EXIT_DONE
    return folder


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("classifier") / "run", *SMALL_CLASSIFIER)


@pytest.mark.parametrize("plain, config", [
    ({"kind": "inception"}, InceptionConfig()),
    ({"kind": "inception", "weights": "a.pt", "sha256": None}, InceptionConfig(weights=Path("a.pt"), sha256=None)),
    ({"kind": "inception", "via": "torchscript"}, InceptionConfig(via="torchscript")),
    ({"kind": "pixels"}, PixelsConfig()),
    ({"kind": "torchscript", "file": "dino.pt", "size": 224}, TorchScriptConfig(file=Path("dino.pt"), size=224)),
    ({"kind": "classifier", "checkpoint": "runs/c"}, ClassifierFeaturesConfig(checkpoint=Path("runs/c"))),
])
def test_every_kind_can_be_configured(plain: dict, config: FeaturesConfig) -> None:
    assert build(FeaturesConfig, plain, ()) == config


def test_the_kinds_that_read_images_are_built(tmp_path: Path) -> None:
    images = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    assert build_extractor(PixelsConfig(), "cpu")(images).pool.shape == (2, 192)
    file = saved_script(Means(), tmp_path / "means.pt")
    script = TorchScriptConfig(file=file, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    torch.testing.assert_close(build_extractor(script, "cpu")(images).pool, torch.full((2, 3), 0.2))


def test_both_forms_of_inception_are_built(tmp_path: Path) -> None:
    torch.save(random_inception_weights(), tmp_path / "inception.pth")
    fidelity = build_extractor(InceptionConfig(weights=tmp_path / "inception.pth", sha256=None), "cpu")
    script = saved_script(Means(), tmp_path / "inception.pt")
    sha256 = hashlib.sha256(script.read_bytes()).hexdigest()
    torchscript = build_extractor(InceptionConfig(weights=script, sha256=sha256), "cpu")
    assert fidelity.name.startswith("inception via torch-fidelity")
    assert torchscript.name.startswith("inception via torchscript")
    assert fidelity.reads == torchscript.reads == "images"


def test_without_torch_fidelity_the_command_that_installs_it_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match="needs the package torch_fidelity, .*pip install --no-deps -c con.* torch-f"):
        build_extractor(InceptionConfig(), "cpu")


def test_a_classifier_that_was_trained_here_gives_features_of_samples(classifier_run: Path) -> None:
    extractor = build_extractor(ClassifierFeaturesConfig(checkpoint=classifier_run), "cpu")
    checkpoint = resolve_checkpoint(classifier_run)
    features = extractor(torch.zeros(3, 1, 8, 8))
    assert extractor.reads == "samples"
    assert extractor.name == f"classifier {digest(checkpoint, 'average.')[:16]}, time 0"
    assert features.pool.shape == (3, 16)
    head = read_tensors(checkpoint, "average.final_layer.1.")
    weight, bias = head["average.final_layer.1.weight"], head["average.final_layer.1.bias"]
    torch.testing.assert_close(features.logits, features.pool @ weight.T + bias)


def test_the_name_of_a_classifier_is_of_its_average_alone(classifier_run: Path) -> None:
    checkpoint = resolve_checkpoint(classifier_run)
    assert len({digest(checkpoint), digest(checkpoint, "average."), digest(checkpoint, "classifier.")}) == 3


def test_a_checkpoint_of_a_generator_has_no_classifier(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *SMALL_FLOW_MATCHING)
    with pytest.raises(CheckpointError, match="holds a generator; wanted .*'classification'"):
        build_extractor(ClassifierFeaturesConfig(checkpoint=run), "cpu")
    with pytest.raises(CheckpointError, match="is not a folder"):
        build_extractor(ClassifierFeaturesConfig(checkpoint=tmp_path / "absent"), "cpu")
