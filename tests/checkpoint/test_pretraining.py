"""Pretraining files of DiT and SiT, read and written."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from afm_scale.checkpoint.formats.dit import DIT
from afm_scale.checkpoint.formats.format import Told, Wanted
from afm_scale.checkpoint.formats.native import NATIVE
from afm_scale.checkpoint.formats.sit import SIT
from afm_scale.checkpoint.formats.table import format_of
from afm_scale.core.errors import CheckpointError
from afm_scale.core.sinusoids import time_sinusoids
from afm_scale.core.types import NO_CLASS
from afm_scale.models import layers
from afm_scale.models.generator import DiTGenerator
from tests.checkpoint.published import Planted, generator, saved, state_dict, training_checkpoint

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "formats"
FINAL, FINAL_BIAS = "final_layer.linear.weight", "final_layer.linear.bias"
# The exponential that the golden numbers are of rounds these of the 128 frequencies to the nearest number, or to one
# above (True); another machine's does otherwise, which angles of up to a thousand make 2e-5 of an output.
THEIRS = {12: True, 13: False, 44: False, 106: True, 119: False}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "formats.safetensors")


def as_where_golden_numbers_are_from(embedding: str, t: Tensor) -> Tensor:
    exponents = -math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128
    frequencies, rounded = torch.exp(exponents), torch.exp(exponents.double()).float()
    for index, is_above in THEIRS.items():
        frequencies[index] = torch.nextafter(rounded[index], torch.tensor(1.0)) if is_above else rounded[index]
    angles = (1000 * t.float())[:, None] * frequencies
    return torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1)


@pytest.mark.parametrize("name", ["dit_pretrained", "dit_training_checkpoint"])
def test_a_dit_predicts_the_golden_noise(
    name: str, golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with DIT.source(GOLDEN / f"{name}.pth", Told(heads=3)) as source:
        network = generator(source)
    x, t, y, wanted = (golden[key] for key in ("x", "t", "y", f"out.{name}"))
    with torch.no_grad():
        noise = DiTGenerator.forward(network, x, t, t, y)
        torch.testing.assert_close(noise, wanted[:, :4], rtol=0, atol=1e-4)  # float32 angles of up to a thousand
        monkeypatch.setattr(layers, "time_sinusoids", as_where_golden_numbers_are_from)
        torch.testing.assert_close(DiTGenerator.forward(network, x, t, t, y), wanted[:, :4], rtol=0, atol=1e-5)


def test_a_sit_has_the_golden_velocity_in_this_programs_convention(golden: dict[str, Tensor]) -> None:
    with SIT.source(GOLDEN / "sit_pretrained.pth", Told(heads=3)) as source:
        network = generator(source)
    x, t, y = (golden[key] for key in "xty")
    with torch.no_grad():
        velocity = network(x, 1 - t, 1 - t, y)
    torch.testing.assert_close(velocity, -golden["out.sit_pretrained"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "width, heads, patch, side, channels", [(384, 6, 4, 16, 4), (64, 4, 2, 4, 3), (40, 5, 1, 3, 2)]
)
def test_files_of_any_size_are_read_and_the_last_row_is_for_no_class(
    tmp_path: Path, width: int, heads: int, patch: int, side: int, channels: int
) -> None:
    weights = state_dict(width=width, depth=1, patch=patch, side=side, channels=channels, classes=3)
    path = saved(weights, tmp_path / "DiT.pt")
    with DIT.source(path, Told(heads=None if width == 384 else heads)) as source:
        card, network = source.card(), generator(source)
        assert (card.shape, card.num_classes, card.class_dropout) == ((channels, side, side), 3, 0.1)
        assert any("left out" in note for note in source.about.notes)
        kept = source.read(f"average.{FINAL}")
    assert torch.equal(kept, weights[FINAL].view(patch**2, 2, channels, width)[:, 0].flatten(0, 1))
    row = weights["y_embedder.embedding_table.weight"][3].double()
    assert torch.equal(network.y_embedder(torch.tensor([NO_CLASS]))[0], row)


def test_a_training_checkpoint_gives_the_average_the_generator_and_says_that_the_optimizer_is_left_out(
    tmp_path: Path,
) -> None:
    average, own = state_dict(seed=1), state_dict(seed=2)
    path = saved(training_checkpoint("SiT-XL/2", average, own, num_classes=5), tmp_path / "0400000.pt")
    assert format_of("auto", path) is SIT
    with SIT.source(path, Told(heads=2)) as source:
        assert torch.equal(source.read("average.pos_embed"), average["pos_embed"])
        for prefix, weights in (("average", average), ("generator", own)):
            assert torch.equal(source.read(f"{prefix}.blocks.1.mlp.fc1.bias"), weights["blocks.1.mlp.fc1.bias"])
        assert any("optimizer" in note for note in source.about.notes)


def test_one_without_a_row_for_no_class_is_known_by_its_command_line(tmp_path: Path) -> None:
    weights = state_dict(null=False)
    path = saved(training_checkpoint("DiT-B/2", weights, weights, num_classes=5), tmp_path / "last.pt")
    with DIT.source(path, Told(heads=2)) as source:
        assert source.card().num_classes == 5 and not source.card().networks["generator"]["null_class"]


@pytest.mark.parametrize("name, zero, found", [
    ("DiT-XL-2-256x256.pt", False, DIT), ("SiT-XL-2-256.pt", False, SIT), ("last.pt", True, SIT),
])
def test_whose_a_file_is_shows_in_what_sit_never_learns_or_in_its_name(
    tmp_path: Path, name: str, zero: bool, found: object
) -> None:
    assert format_of("auto", saved(state_dict(zero_sigma=zero), tmp_path / name)) is found


def test_a_file_that_does_not_show_whose_it_is_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--from"):
        format_of("auto", saved(state_dict(), tmp_path / "last.pt"))


@pytest.mark.parametrize("is_training", [False, True])
def test_a_sit_comes_back_bit_for_bit_through_a_native_checkpoint(tmp_path: Path, is_training: bool) -> None:
    weights, own = (state_dict(zero_sigma=True, seed=seed) for seed in (3, 4))
    content = training_checkpoint("SiT-S/2", weights, own, num_classes=5) if is_training else weights
    with SIT.source(saved(content, tmp_path / "sit.pt"), Told(heads=2)) as source:
        NATIVE.write(source, tmp_path / "native", Wanted())
    with NATIVE.source(tmp_path / "native", Told()) as source:
        SIT.write(source, tmp_path / "back.pt", Wanted())
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    for key, wanted in {"ema": weights, "model": own}.items() if is_training else [("", weights)]:
        found = back[key] if key else back
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_dit_comes_back_with_its_prediction_alone(tmp_path: Path) -> None:
    weights = state_dict()
    with DIT.source(saved(weights, tmp_path / "dit.pt"), Told(heads=2)) as source:
        DIT.write(source, tmp_path / "back.pt", Wanted())
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert torch.equal(back[FINAL], weights[FINAL].view(4, 2, 4, 32)[:, 0].flatten(0, 1))
    assert all(torch.equal(back[name], weights[name]) for name in weights if not name.startswith("final_layer.linear"))


def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with DIT.source(saved(state_dict(), tmp_path / "dit.pt"), Told(heads=2)) as source:
        with pytest.raises(CheckpointError, match="kind is 'dit_diffusion', wanted 'dit'.*time_embedding"):
            SIT.write(source, tmp_path / "sit.pt", Wanted())
    assert not (tmp_path / "sit.pt").exists()


@pytest.mark.parametrize("kind", [DIT, SIT])
@pytest.mark.parametrize("where", ["args", "opt", "weight", "plain"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, kind: object, where: str) -> None:
    planted, weights = Planted(tmp_path / "ran"), state_dict()
    if where in ("weight", "plain"):
        content: object = weights | {"extra": planted} if where == "weight" else planted
    else:
        content = training_checkpoint("DiT-XL/2", weights, weights) | {where: planted}
    path = saved(content, tmp_path / "dit_sit.pt")
    assert not kind.recognises(path)
    with pytest.raises(CheckpointError, match="Nothing in it was run"):
        kind.source(path, Told(heads=2))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage, words", [
    (lambda w: w.pop("blocks.1.attn.qkv.bias"), r"missing: blocks\.1\.attn\.qkv\.bias"),
    (lambda w: w.update({"blocks.0.attn.qkv.waight": w.pop("blocks.0.attn.qkv.weight")}), "there is .*qkv.waight"),
    (lambda w: w.update({"more": torch.ones(2)}), "surplus: more"),
    (lambda w: w.update({"blocks.1.mlp.fc1.weight": torch.ones(4, 4)}), r"\[4, 4\] there, \[128, 32\] wanted"),
    (lambda w: w.update({FINAL: torch.ones(48, 32), FINAL_BIAS: torch.ones(48)}), "12 channels, wanted 4 or 8"),
])
def test_what_does_not_fit_is_listed(tmp_path: Path, damage: object, words: str) -> None:
    weights = state_dict()
    damage(weights)
    with pytest.raises(CheckpointError, match=words):
        DIT.source(saved(weights, tmp_path / "dit.pt"), Told(heads=2))


def test_heads_that_no_tensor_shows_are_asked_for(tmp_path: Path) -> None:
    with DIT.source(saved(state_dict(width=20), tmp_path / "dit.pt"), Told()) as source, \
            pytest.raises(CheckpointError, match="--heads"):
        source.card()


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dit.pth"
    shutil.copy(GOLDEN / "dit_pretrained.pth", path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError):
        DIT.source(path, Told(heads=3))


def test_sinusoids_of_the_published_time_are_those_of_a_thousand_times() -> None:
    t = torch.tensor([0.25, 0.75])
    assert torch.equal(time_sinusoids("dit", t)[:, 0], torch.cos(1000 * t))
