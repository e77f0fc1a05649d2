"""What a checkpoint says of its networks: written, read, and derived for those from before there were cards."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_scale.checkpoint.card import Card, Latents, card_of, from_plain, to_plain
from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.manifest import MANIFEST_NAME, read_manifest, resolve_checkpoint
from afm_scale.core.errors import CheckpointError
from afm_scale.core.types import Role
from tests.checkpoints import write_manifest_text

OLD = Path(__file__).resolve().parents[1] / "golden" / "checkpoints"  # of commit 7cad6c0, see about.json there

CARD = Card(
    learner=Role.GENERATOR, objective="afm",
    networks={
        Role.GENERATOR: {"kind": "dit", "patch_size": 2, "hidden_size": 8},
        Role.DISCRIMINATOR: {"kind": "mlp", "width": 4},
    },
    shape=(4, 32, 32), num_classes=1000, prediction="x", class_dropout=0.0, num_steps=2, precision="bf16",
    device="auto", data={"kind": "latents", "folder": "latents"}, latents=Latents(vae="sd-vae-ft-mse", scale=0.18215),
)


def saved(folder: Path, card: Card | None, description: dict[str, Any] | None = None) -> Path:
    manager = CheckpointManager(
        folder / "checkpoints", CheckpointConfig(every_steps=1), rank=0, world_size=1, description=description or {},
        card=card,
    )
    manager.save(1, {"weight": torch.zeros(2)}, {"step": 1})
    manager.close()
    return resolve_checkpoint(folder)


def changed(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a checkpoint whose card says something else."""
    copied = shutil.copytree(checkpoint, folder / checkpoint.name)
    manifest = json.loads((copied / MANIFEST_NAME).read_text())
    manifest["card"] |= changes
    write_manifest_text(copied, json.dumps(manifest))
    return copied


@pytest.mark.parametrize("card", [
    CARD, replace(CARD, latents=None), replace(CARD, latents=Latents(vae=None, scale=None)),
    replace(CARD, learner=Role.CLASSIFIER, prediction=None, networks={Role.CLASSIFIER: {"kind": "dit"}}),
])
def test_a_card_is_read_as_it_was_written(card: Card, tmp_path: Path) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(card)))) == card
    assert card_of(saved(tmp_path, card)) == card


@pytest.mark.parametrize("name, objective, prediction, num_steps, dropout", [
    ("afm", "afm", "x", 1, 0.0), ("flow_matching", "flow_matching", "v", 16, 0.1), ("afm_moments", "afm", "x", 1, 0.0),
    ("classifier", "classification", None, 1, 0.0),
])
def test_a_checkpoint_from_before_there_were_cards_says_as_much(
    name: str, objective: str, prediction: str | None, num_steps: int, dropout: float
) -> None:
    card = card_of(resolve_checkpoint(OLD / name))
    assert (card.objective, card.prediction, card.num_steps) == (objective, prediction, num_steps)
    assert (card.shape, card.num_classes, card.class_dropout, card.latents) == ((1, 8, 8), 10, dropout, None)
    assert card.networks[card.learner]["hidden_size"] == 8
    assert (Role.DISCRIMINATOR in card.networks) == (objective == "afm")
    assert (card.precision, card.device, card.data["kind"]) == ("fp32", "cpu", "digits")


def test_settings_that_are_no_more_do_not_make_an_old_checkpoint_unreadable(tmp_path: Path) -> None:
    old = resolve_checkpoint(OLD / "afm")
    copied = shutil.copytree(old, tmp_path / old.name)
    manifest = json.loads((copied / MANIFEST_NAME).read_text())
    config = manifest["description"]["config"]
    config["hooks"], config["optimizer"], config["later"] = {"of_old": 1}, None, {"kind": "unheard of"}
    config["objective"] |= {"old_weight": 3.0, "penalty": "renamed"}
    write_manifest_text(copied, json.dumps(manifest))
    assert card_of(copied) == card_of(old)


@pytest.mark.parametrize("changes, message", [
    ({"version": 2}, "has a card of version 2, this program reads version 1"),
    ({"version": None}, "has a card of version null"),
    ({"version": True}, "version: found true"),
    ({"learner": "judge"}, "learner: found 'judge', wanted one of"),
    ({"learner": "classifier"}, "no network of the learner 'classifier'"),
    ({"prediction": None}, "a generator with prediction null"),
    ({"prediction": "noise"}, "wanted one of 'x', 'v'"),
    ({"networks": []}, "networks: found [], wanted a mapping"),
    ({"networks": {"judge": {"kind": "mlp"}}}, "networks.judge: found 'judge', wanted one of"),
    ({"networks": {"generator": {"hidden_size": 8}}}, "the 'kind' of generator is null"),
    ({"networks": {"generator": {"kind": ["dit"]}}}, "the 'kind' of generator is ['dit']"),
    ({"shape": [4, 32]}, "shape: found [4, 32] of 2, wanted a list of 3"),
    ({"shape": [4, 32, -1]}, "shape[2]: found -1, wanted a whole number from 1 to"),
    ({"shape": [4, 10**15, 10**15]}, "shape[1]: found 1000000000000000, wanted"),
    ({"shape": 7}, "shape: found 7, wanted a list"),
    ({"num_classes": True}, "num_classes: found true, wanted a whole number"),
    ({"num_classes": 10**400}, "num_classes: found 1000"),
    ({"num_classes": math.inf}, "Infinity is no finite number"),
    ({"num_steps": 10**9}, "num_steps: found 1000000000, wanted"),
    ({"class_dropout": math.nan}, "NaN is no finite number"),
    ({"class_dropout": 1.5}, "class_dropout: found 1.5, wanted a number from 0 to 1"),
    ({"precision": "int4"}, "wanted one of 'fp32'"),
    ({"deterministic": 1}, "deterministic: found 1, wanted true or false"),
    ({"data": {"kind": None}}, "the 'kind' of data is null"),
    ({"latents": {"vae": 3, "scale": 1.0}}, "latents.vae: found 3, wanted text"),
    ({"latents": {"vae": None}}, "missing 'scale'"),
    ({"shapes": [1, 1, 1]}, "unknown key"),
])
def test_a_damaged_card_is_refused_with_what_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, CARD)
    with pytest.raises(CheckpointError) as caught:
        card_of(changed(checkpoint, tmp_path / "changed", **changes))
    assert message in str(caught.value) and str(checkpoint.name) in str(caught.value)


@pytest.mark.parametrize("missing", sorted(to_plain(CARD)))
def test_a_card_without_one_of_its_entries_is_refused(missing: str, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, CARD)
    manifest = json.loads((checkpoint / MANIFEST_NAME).read_text())
    del manifest["card"][missing]
    write_manifest_text(checkpoint, json.dumps(manifest))
    with pytest.raises(CheckpointError, match="version" if missing == "version" else missing):
        card_of(checkpoint)


@pytest.mark.parametrize("config", [{}, None, [], {"model": 3}, {"data": {"kind": "digits"}}, "text"])
def test_a_checkpoint_that_says_nothing_is_refused(config: object, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, None, {"config": config})
    with pytest.raises(CheckpointError, match="does not say how it was made|is damaged"):
        card_of(checkpoint)


def test_every_part_of_an_old_configuration_that_is_read_may_be_damaged(tmp_path: Path) -> None:
    manifest = read_manifest(resolve_checkpoint(OLD / "afm"))
    for section in ("model", "data", "objective", "sampling", "parallel"):
        for value in (None, 3, [], {}, "text"):
            config = copy.deepcopy(dict(manifest.description["config"])) | {section: value}
            with pytest.raises(CheckpointError, match="is damaged"):
                card_of(saved(tmp_path / f"{section}-{value!r}", None, {"config": config}))
