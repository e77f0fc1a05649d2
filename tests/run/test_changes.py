from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from afm_scale.checkpoint.manifest import Manifest, write_manifest
from afm_scale.core.errors import ConfigError
from afm_scale.core.typed import to_mapping
from afm_scale.data.table import SOURCES
from afm_scale.data.toys.captioned_mnist import CaptionedMnistConfig
from afm_scale.run.changes import CANNOT, FINGERPRINT, Change, Comparison
from afm_scale.run.config import ModelConfig, RunConfig
from afm_scale.run.load import load

PACKED = {"index": "1" * 64, "classes": "2" * 64}
AFM = ("digits_afm", ["run.folder=run"])


def config_of(*overrides: str, recipe: str = "digits_afm") -> RunConfig:
    return load(RunConfig, recipe, ["run.folder=run", *overrides])


def checkpoint_of(folder: Path, config: Any, data: Mapping[str, str] | None = None) -> Path:
    """A checkpoint without tensors whose manifest says these settings."""
    plain = to_mapping(config)
    write_manifest(folder, Manifest(
        step=3, created="2026", world_size=1, scalars={}, tensors={}, files={},
        description={"config": plain} if data is None else {"config": plain, "data": data},
    ))
    return folder


def changes(checkpoint: Path, config: RunConfig, fingerprint: Mapping[str, str] | None = None) -> dict[str, tuple]:
    comparison = Comparison(config, fingerprint or {})
    comparison(checkpoint)
    return {change.key: (change.old, change.new) for change in comparison.changes}


def test_what_may_change_is_told_by_its_path_with_both_values(tmp_path: Path) -> None:
    old = checkpoint_of(tmp_path, config_of())
    assert changes(old, config_of()) == {}
    found = changes(old, config_of(
        "loop.seed=7", "data.global_batch=32", "parallel.plan=ddp", "run.folder=elsewhere", "loop.steps=9",
        "optimizer.generator.learning_rate=1e-3", "hooks.samples=null", "run.accept_changes=[loop]",
    ))
    assert found.keys() == {
        "loop.seed", "data.global_batch", "parallel.plan", "run.folder", "loop.steps", "hooks.samples",
        "optimizer.generator.learning_rate",
    }
    assert found["loop.seed"] == (0, 7) and found["data.global_batch"] == (128, 32)
    assert found["optimizer.generator.learning_rate"][0]["kind"] == "piecewise"
    assert found["optimizer.generator.learning_rate"][1] == 1e-3
    assert str(Change("loop.seed", None, 7)) == "loop.seed: null -> 7"


@pytest.mark.parametrize(("overrides", "key"), [
    (["model.generator.num_heads=2"], "model.generator.num_heads"),
    (["model.discriminator.num_heads=2"], "model.discriminator.num_heads"),
    (["model.generator={kind: mlp, width: 8}"], "model.generator"),
    (["objective.prediction=v"], "objective.prediction"),
    (["data={kind: mnist, global_batch: 128}"], "data.kind"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_go_on_is_refused_unless_it_is_accepted(tmp_path: Path, overrides: list[str], key: str) -> None:
    old = checkpoint_of(tmp_path, config_of("data.part=train"))
    with pytest.raises(ConfigError, match=rf"{key}: .* -> .*run.accept_changes=\[{key}[],]"):
        changes(old, config_of("data.part=train", *overrides))
    for accepted in (key, key.partition(".")[0]):
        assert key in changes(old, config_of("data.part=train", *overrides, f"run.accept_changes=[{accepted}]"))
    with pytest.raises(ConfigError, match=key):
        changes(old, config_of("data.part=train", *overrides, f"run.accept_changes=[{key}s, other]"))


def test_another_objective_is_refused(tmp_path: Path) -> None:
    old = checkpoint_of(tmp_path, config_of(recipe="digits_flow_matching"))
    with pytest.raises(ConfigError, match="objective.kind: 'flow_matching' -> 'afm'"):
        changes(old, config_of())


def test_a_guide_may_be_another_where_the_same_network_trained_may_not(tmp_path: Path) -> None:
    classifier = "model.classifier.num_heads=2"
    guided = checkpoint_of(tmp_path, config_of(recipe="digits_afm_guided"))
    assert "model.classifier.num_heads" in changes(guided, config_of(classifier, recipe="digits_afm_guided"))
    trained = checkpoint_of(tmp_path, config_of(recipe="classifier_digits"))
    with pytest.raises(ConfigError, match="model.classifier.num_heads"):
        changes(trained, config_of(classifier, recipe="classifier_digits"))


def packed(kind: str, folder: str = "here") -> RunConfig:
    data = f"data={{kind: {kind}, folder: {folder}, size: 8, num_classes: 10, global_batch: 128}}"
    return config_of(data, "model.generator.patch_size=4")


def test_data_are_the_same_wherever_they_lie_and_whoever_reads_them(tmp_path: Path) -> None:
    old = checkpoint_of(tmp_path, packed("webdataset"), PACKED)
    assert changes(old, packed("dali", "there"), PACKED) == {
        "data.kind": ("webdataset", "dali"), "data.folder": ("here", "there"),
    }
    before = checkpoint_of(tmp_path, packed("webdataset"))  # from before there were fingerprints
    assert changes(before, packed("webdataset", "there"), PACKED) == {"data.folder": ("here", "there")}
    with pytest.raises(ConfigError, match="data.kind"):
        changes(before, packed("dali"), PACKED)


@pytest.mark.parametrize(("name", "why"), [("index", "another data set"), ("classes", "another order")])
def test_data_packed_anew_and_another_order_of_classes_are_refused(tmp_path: Path, name: str, why: str) -> None:
    old = checkpoint_of(tmp_path, packed("webdataset"), PACKED)
    others = {**PACKED, name: "3" * 64}
    with pytest.raises(ConfigError, match=f"{FINGERPRINT}.{name}: .*{why}"):
        changes(old, packed("webdataset"), others)
    config = packed("webdataset")
    accepting = replace(config, run=replace(config.run, accept_changes=(FINGERPRINT,)))
    assert changes(old, accepting, others) == {f"{FINGERPRINT}.{name}": (PACKED[name], "3" * 64)}


def test_prompts_of_another_text_encoder_are_refused(tmp_path: Path) -> None:
    def config(digit: str, **shown: Any) -> RunConfig:
        data = CaptionedMnistConfig(global_batch=8, num_classes=90, length=13, width=64, encoder=digit * 64, **shown)
        return replace(config_of(), data=data)

    why = "the prompts were embedded by another text encoder: their numbers mean something else"
    old = checkpoint_of(tmp_path, config("1"), {"text_encoder": "1" * 64, "prompts": "3" * 64})
    with pytest.raises(ConfigError, match=f"data.encoder: .* -> .* .{why}") as caught:
        changes(old, config("2"), {"text_encoder": "2" * 64, "prompts": "3" * 64})
    assert "data.fingerprint.text_encoder: " in str(caught.value) and str(caught.value).count(why) == 2
    assert changes(old, config("1", shown=Path("others")), {"text_encoder": "1" * 64, "prompts": "3" * 64}).keys() == {
        "data.shown"
    }


def test_a_configuration_of_another_version_does_no_harm(tmp_path: Path) -> None:
    older = json.loads(json.dumps(to_mapping(config_of())))
    del older["run"]["accept_changes"], older["model"]["generator"]["repetitions"]
    older["loop"]["long_gone"] = older["gone"] = 3
    old = checkpoint_of(tmp_path, older)
    assert changes(old, config_of()) == {}
    with pytest.raises(ConfigError, match="model.generator.repetitions: null -> 2"):
        changes(old, config_of("model.generator.repetitions=2"))
    for odd in ({}, None, [], {"model": 3}, {"model": {"generator": None}}):
        checkpoint = checkpoint_of(tmp_path, odd)
        if isinstance(odd, dict) and odd:
            with pytest.raises(ConfigError, match="model"):
                changes(checkpoint, config_of())
        else:
            assert changes(checkpoint, config_of()) == {}


def test_every_setting_that_cannot_change_is_a_setting() -> None:
    sources = {field.name for source in SOURCES for field in fields(source)}
    known = {"objective.kind", "objective.prediction", FINGERPRINT}
    known |= {f"{FINGERPRINT}.classes", f"{FINGERPRINT}.text_encoder"}
    known |= {f"model.{field.name}" for field in fields(ModelConfig)} | {f"data.{name}" for name in sources}
    assert {cannot.key for cannot in CANNOT} <= known
