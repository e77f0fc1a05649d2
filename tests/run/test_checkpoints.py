"""What checkpoints are asked: those of a run that has just ended, old ones, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import afm_scale
from afm_scale.checkpoint.card import card_of
from afm_scale.checkpoint.manifest import MANIFEST_NAME, read_manifest, resolve_checkpoint
from afm_scale.core.errors import CheckpointError
from afm_scale.core.types import Role
from afm_scale.run.checkpoints import card_of_run, open_checkpoint
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from tests.checkpoints import write_manifest_text
from tests.program import ROOT, SMALL_AFM, end, train

OLD = ROOT / "tests" / "golden" / "checkpoints"  # of commit 7cad6c0, see about.json there


def copied(name: str, folder: Path, **changes: Any) -> Path:
    """A copy of an old checkpoint with another configuration: `changes` go into its sections."""
    path = shutil.copytree(resolve_checkpoint(OLD / name), folder / "step_00000003")
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    config = manifest["description"]["config"]
    for section, values in changes.items():
        config[section] = {**(config.get(section) or {}), **values}
    write_manifest_text(path, json.dumps(manifest))
    return path


@pytest.mark.parametrize("recipe, overrides", [
    ("digits_afm", ()), ("digits_flow_matching", ("objective.class_dropout=0.1", "model.generator.null_class=true")),
    ("classifier_digits", ()),
])
def test_the_card_of_a_run_is_what_its_configuration_alone_would_tell(recipe: str, overrides: tuple[str, ...]) -> None:
    card = card_of_run(load(RunConfig, recipe, [*overrides, "run.folder=nowhere"]))
    assert card.networks[card.learner]["kind"] == "dit" and card.data["kind"] == "digits"
    assert card.class_dropout == (0.1 if overrides else 0.0)


def test_a_run_writes_its_card_and_is_drawn_from_by_it_alone(tmp_path: Path) -> None:
    code, _, told = end(train(SMALL_AFM, tmp_path / "run", "loop.steps=1", "parallel.ops=torch"))
    assert code == 0, told
    path = resolve_checkpoint(tmp_path / "run")
    card, manifest = card_of(path), json.loads((path / MANIFEST_NAME).read_text())
    assert (card.learner, card.objective, card.ops, card.deterministic) == (Role.GENERATOR, "afm", "torch", False)
    assert set(card.networks) == {Role.GENERATOR, Role.DISCRIMINATOR} and read_manifest(path).step == 1
    before = afm_scale.load(path).sample([0, 1, 2])
    manifest["description"] = {}
    write_manifest_text(path, json.dumps(manifest))
    assert torch.equal(afm_scale.load(path).sample([0, 1, 2]), before)


def test_settings_that_this_program_does_not_know_leave_an_old_checkpoint_usable(tmp_path: Path) -> None:
    path = copied(
        "afm", tmp_path, loop={"of_old": 1}, hooks={"unheard_of": {}}, objective={"renamed": True},
        parallel={"plan": "of old"}, optimizer={"generator": "another"}, report={"kind": "none such"},
    )
    assert torch.equal(afm_scale.load(path).sample([4, 2]), afm_scale.load(OLD / "afm").sample([4, 2]))


@pytest.mark.parametrize("settings, told", [
    ({"kind": "unet"}, "holds a network that this program cannot build: generator.*use the version"),
    ({"later": 3}, "holds a network that this program cannot build: .*later.*use the version"),
    ({"hidden_size": 24}, "does not fit its own configuration"), ({"num_heads": 3}, "cannot build: .* of num_heads 3"),
    ({"hidden_size": "wide"}, "cannot build: generator.hidden_size"), ({"patch_size": 0}, "cannot build: .*patch_size"),
    ({"num_heads": 0}, "num_heads: found 0"), ({"num_heads": -2}, "num_heads: found -2"),
    ({"hidden_size": 8 * 10**29}, "hidden_size: found 8"), ({"depth": 10**9}, "depth: found 1000000000"),
])
def test_a_network_that_is_not_as_described_is_refused(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    config = read_manifest(resolve_checkpoint(OLD / "afm")).description["config"]
    generator = {**config["model"]["generator"], **settings}
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(copied("afm", tmp_path, model={"generator": generator})).average()


def test_settings_that_are_not_named_are_at_their_defaults() -> None:
    settings = open_checkpoint(OLD / "classifier").settings(Role.CLASSIFIER)
    assert settings["hidden_size"] == 8 and settings["weights"] is None


def test_a_checkpoint_of_another_role_is_told_from_the_one_wanted() -> None:
    with pytest.raises(CheckpointError, match="holds a generator; wanted the checkpoint of a run of objective 'class"):
        open_checkpoint(OLD / "afm", holds=Role.CLASSIFIER)
