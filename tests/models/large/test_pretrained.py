from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from afm_scale.core.errors import ConfigError
from afm_scale.models.large.pretrained import INDEX_NAME, WEIGHTS_NAME
from afm_scale.models.layers import initial_weights
from tests.models.large.small import SETTINGS, described, network, on_meta, plain


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return plain(network())


def started(folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    return dict(initial_weights(on_meta(described(weights=folder, **changes)), 0, "generator"))


@pytest.mark.parametrize("size", ["10GB", "100KB"])
def test_a_folder_of_diffusers_is_what_the_network_begins_with(theirs, tmp_path, size) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / INDEX_NAME).exists() == (size == "100KB")
    found = started(tmp_path)
    for name, value in theirs.state_dict().items():
        assert torch.equal(found.pop(f"transformer.{name}"), value)
    embedder = theirs.time_text_embed.timestep_embedder.state_dict()
    assert found.keys() == {f"second_time.{name}" for name in embedder}
    for name, value in embedder.items():  # a copy of the first
        assert torch.equal(found[f"second_time.{name}"], value)


def test_lower_precisions_are_widened(theirs, tmp_path) -> None:
    weights = {name: value.to(torch.bfloat16) for name, value in theirs.state_dict().items()}
    theirs.save_config(tmp_path)
    save_file(weights, tmp_path / WEIGHTS_NAME)
    found = started(tmp_path)
    assert found["second_time.linear_1.weight"].dtype == torch.float32
    assert torch.equal(found["transformer.img_in.weight"], weights["img_in.weight"].float())


def test_without_settings_of_its_own_a_recipe_takes_those_of_the_folder(theirs, tmp_path) -> None:
    theirs.save_pretrained(tmp_path)
    resolved = described(weights=tmp_path, config=None).resolved()
    assert {name: resolved.config[name] for name in SETTINGS} == SETTINGS
    assert resolved.prompt_width == 12 and resolved.without_files().weights is None
    on_meta(resolved)


def damaged(folder: Path, change: str) -> None:
    path = folder / WEIGHTS_NAME
    weights = load_file(path)
    if change == "missing":
        del weights["img_in.bias"]
    elif change == "too many":
        weights["img_in.other"] = torch.zeros(2)
    elif change == "shape":
        weights["img_in.bias"] = torch.zeros(2)
    elif change == "whole":
        weights["img_in.bias"] = torch.zeros(32, dtype=torch.int32)
    elif change == "nan":
        weights["img_in.bias"] = torch.full((32,), torch.nan)
    save_file(weights, path)
    if change == "torn":
        path.write_bytes(path.read_bytes()[:-8])
    if change == "gone":
        path.unlink()
    if change in ("climbs", "a pickle", "no map"):
        path.rename(folder / "one.safetensors")
        name = "one.bin" if change == "a pickle" else "../one.safetensors"
        listed = {} if change == "no map" else {"weight_map": {"img_in.bias": name}}
        (folder / INDEX_NAME).write_text(json.dumps(listed))


@pytest.mark.parametrize("change, reason", [
    ("missing", r"does not fit model.generator.config: img_in.bias is missing there, \(32,\) here"),
    ("too many", r"img_in.other is \(2,\) there, not wanted here"),
    ("shape", r"img_in.bias is \(2,\) there, \(32,\) here"),
    ("whole", "img_in.bias is of I32"),
    ("nan", "img_in.bias holds values that are not finite"),
    ("torn", "cannot be read.*; restore it"),
    ("gone", f"has no {WEIGHTS_NAME}"),
    ("climbs", "names '../one.safetensors', which is no safetensors file beside it"),
    ("a pickle", "names 'one.bin', which is no safetensors file beside it"),
    ("no map", "it has no weight_map of names to files"),
])
def test_weights_that_are_not_the_networks_are_refused_by_the_first_misfit(theirs, tmp_path, change, reason) -> None:
    theirs.save_pretrained(tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(ConfigError, match=reason):
        started(tmp_path)


def test_a_folder_of_another_class_or_of_none_is_refused(theirs, tmp_path) -> None:
    with pytest.raises(ConfigError, match="config.json cannot be read"):
        described(weights=tmp_path, config=None).resolved()
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ConfigError, match="is of class 'AutoencoderKL', model.generator.class_name is"):
        described(weights=tmp_path, config=None).resolved()
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="it is no mapping"):
        described(weights=tmp_path, config=None).resolved()
