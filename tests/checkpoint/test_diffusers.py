"""Folders of diffusers' DiTTransformer2DModel, which diffusers itself loads and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from afm_scale.checkpoint.card import from_plain, to_plain
from afm_scale.checkpoint.formats.diffusers import DIFFUSERS
from afm_scale.checkpoint.formats.dit import DIT
from afm_scale.checkpoint.formats.format import About, Lazy, Source, Told, Wanted
from afm_scale.checkpoint.formats.native import NATIVE
from afm_scale.checkpoint.formats.sit import SIT
from afm_scale.checkpoint.formats.table import format_of
from afm_scale.core.errors import CheckpointError
from afm_scale.core.random import tensor_generator
from afm_scale.core.types import NO_CLASS
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.layers import initial_weights
from tests.checkpoint.published import generator, saved, state_dict

WEIGHTS = "diffusion_pytorch_model.safetensors"
SIZE = {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2}
pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of what it imports


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers")


def theirs(diffusers: Any, folder: Path) -> nn.Module:
    return diffusers.DiTTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False).double().eval()


def inputs(classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return (torch.randn(6, 4, 8, 8, dtype=torch.float64, generator=draws), torch.rand(6, generator=draws),
            torch.arange(6) % classes)


def source(path: Path, *, objective: str = "afm", prediction: str = "v", num_steps: int = 1, **network: Any) -> Source:
    """A generator of this program's with random weights."""
    described = GeneratorConfig(**{**SIZE, "times": "none", **network})
    weights = {
        name: value + 0.1 * torch.randn(value.shape, generator=tensor_generator("diffusers", name))
        if name != "pos_embed" else value
        for name, value in initial_weights(DiTGenerator(described, (4, 8, 8), 5), 0)
    }
    card = from_plain({
        "version": 1, "learner": "generator", "objective": objective, "shape": [4, 8, 8], "num_classes": 5,
        "networks": {"generator": {"kind": "dit", **SIZE, "times": "none", **network}}, "prediction": prediction,
        "class_dropout": 0.0, "num_steps": num_steps, "precision": "fp32", "data": {"kind": "synthetic"},
        "latents": None, "device": "auto", "ops": "auto", "deterministic": False,
    })
    return Source(path, {f"average.{name}": Lazy.of(value) for name, value in weights.items()}, About(card=card))


@torch.no_grad()
def compared(diffusers: Any, given: Source, folder: Path, times: Tensor | None = None) -> float:
    """The largest difference of what diffusers makes of the written folder, and of what this program reads back."""
    DIFFUSERS.write(given, folder, Wanted())
    network, (x, t, y) = generator(given), inputs()
    t = t if times is None else times[torch.arange(len(x)) % len(times)]
    wanted = DiTGenerator.forward(network, x, t, t, y)
    found = theirs(diffusers, folder)(x, timestep=1000 * t.double(), class_labels=y).sample
    with DIFFUSERS.source(folder, Told()) as back:
        again = generator(back)
    torch.testing.assert_close(DiTGenerator.forward(again, x, t, t, y), found, rtol=0, atol=1e-8)
    return (found - wanted).abs().max().item()


def test_a_one_step_generator_is_the_same_in_diffusers_and_comes_back_bit_for_bit(
    diffusers: Any, tmp_path: Path
) -> None:
    given = source(tmp_path)
    assert compared(diffusers, given, tmp_path / "folder") < 1e-10
    with DIFFUSERS.source(tmp_path / "folder", Told()) as back:
        assert to_plain(back.card()) == to_plain(given.card()) and back.tensors.keys() == given.tensors.keys()
        assert all(torch.equal(back.read(name), given.read(name)) for name in given.tensors)


def test_one_with_diffusers_times_and_a_row_for_no_class_is_the_same(diffusers: Any, tmp_path: Path) -> None:
    given = source(
        tmp_path, objective="flow_matching", times="source", time_embedding="diffusers", null_class=True
    )
    assert compared(diffusers, given, tmp_path / "folder") < 1e-10
    with DIFFUSERS.source(tmp_path / "folder", Told()) as back:
        assert all(torch.equal(back.read(name), given.read(name)) for name in given.tensors)


def test_one_of_four_steps_is_the_same_at_its_times(diffusers: Any, tmp_path: Path) -> None:
    given = source(tmp_path, times="source", num_steps=4)
    assert compared(diffusers, given, tmp_path / "folder", torch.tensor([0.25, 0.5, 0.75, 1.0])) < 1e-5


def test_a_sit_is_the_same_at_any_time(diffusers: Any, tmp_path: Path) -> None:
    with SIT.source(saved(state_dict(), tmp_path / "sit.pt"), Told(heads=2)) as given:
        DIFFUSERS.write(given, tmp_path / "folder", Wanted())
        network = generator(given)
    x, t, y = inputs()
    with torch.no_grad():
        found = theirs(diffusers, tmp_path / "folder")(x, timestep=1000 * t.double(), class_labels=y).sample
        assert (found - network(x, t, t, y)).abs().max() < 1e-5
        with DIFFUSERS.source(tmp_path / "folder", Told()) as back:
            assert back.card().networks["generator"]["time_embedding"] == "diffusers"
            torch.testing.assert_close(generator(back)(x, t, t, y), found, rtol=0, atol=1e-8)


@pytest.mark.parametrize("network, words", [
    ({"times": "both"}, "target time"), ({"repetitions": 2}, "blocks 2 times"), ({"qk_norm": True}, "queries and keys"),
])
def test_what_it_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, network: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        DIFFUSERS.write(source(tmp_path, **network), tmp_path / "folder", Wanted())
    assert not (tmp_path / "folder").exists()


def test_a_dit_at_all_of_its_times_is_refused_and_the_setting_named(tmp_path: Path) -> None:
    with DIT.source(saved(state_dict(), tmp_path / "dit.pt"), Told(heads=2)) as given:
        with pytest.raises(CheckpointError, match="time_embedding=diffusers"):
            DIFFUSERS.write(given, tmp_path / "folder", Wanted())
    assert list(tmp_path.iterdir()) == [tmp_path / "dit.pt"]


@pytest.mark.parametrize("heads, head_dim, layers, patch, side, out", [(2, 16, 3, 2, 8, 8), (3, 8, 1, 4, 8, 4)])
@torch.no_grad()
def test_a_folder_of_diffusers_own_gives_the_same_noise(
    diffusers: Any, tmp_path: Path, heads: int, head_dim: int, layers: int, patch: int, side: int, out: int
) -> None:
    folder = tmp_path / "folder"
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, in_channels=4, out_channels=out, num_layers=layers,
        sample_size=side, patch_size=patch, num_embeds_ada_norm=5, norm_eps=1e-6,
    )
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    model.save_pretrained(folder)
    assert format_of("auto", folder) is DIFFUSERS
    with DIFFUSERS.source(folder, Told()) as read:
        network = generator(read)
        assert read.card().networks["generator"]["kind"] == "dit_diffusion"
        assert any("noise" in note for note in read.about.notes)
        NATIVE.write(read, tmp_path / "native", Wanted())
        if out == 4:
            DIFFUSERS.write(read, tmp_path / "back", Wanted())
            one, other = (load_file(place / WEIGHTS) for place in (folder, tmp_path / "back"))
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    x, t, y = inputs()
    wanted = model.double().eval()(x, timestep=1000 * t, class_labels=y).sample[:, :4]
    torch.testing.assert_close(DiTGenerator.forward(network, x, t, t, y), wanted, rtol=0, atol=1e-8)
    none = model(x, timestep=1000 * t, class_labels=torch.full_like(y, 5)).sample[:, :4]
    hidden = DiTGenerator.forward(network, x, t, t, torch.full_like(y, NO_CLASS))
    torch.testing.assert_close(hidden, none, rtol=0, atol=1e-8)


def _folder(tmp_path: Path) -> Path:
    DIFFUSERS.write(source(tmp_path), tmp_path / "folder", Wanted())
    return tmp_path / "folder"


@pytest.mark.parametrize("change, words", [
    ({"norm_type": "layer_norm"}, "norm_type"), ({"num_layers": 3}, "missing: transformer_blocks.2"),
    ({"activation_fn": "geglu"}, "activation_fn"), ({"patch_size": 3}, "patches of 3"), ({"extra": 1}, "unknown key"),
    ({"num_embeds_ada_norm": 9}, "there, \\[10, 32\\] wanted"),
])
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = _folder(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        DIFFUSERS.source(folder, Told())


def test_blocks_with_different_embedders_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    weights = load_file(folder / WEIGHTS)
    weights["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"] += 1
    save_file(weights, folder / WEIGHTS)
    with DIFFUSERS.source(folder, Told()) as read, pytest.raises(CheckpointError, match="block 1 is not that of"):
        read.read("average.y_embedder.embedding_table.weight")


def test_a_pickle_in_the_place_of_the_weights_is_not_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / WEIGHTS).unlink()
    torch.save({"a": torch.ones(1)}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=WEIGHTS):
        DIFFUSERS.source(folder, Told())
    torch.save({"a": torch.ones(1)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="safetensors"):
        DIFFUSERS.source(folder, Told())
