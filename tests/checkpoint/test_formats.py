"""Checkpoints of other formats: what is written is what is read, bit for bit, and nothing in a file is run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from afm_scale.checkpoint.formats.format import Source, Told, Wanted
from afm_scale.checkpoint.formats.safetensors_file import SafetensorsFile
from afm_scale.checkpoint.formats.table import FORMATS, format_of
from afm_scale.checkpoint.formats.torch_reader import TorchFile
from afm_scale.core.errors import CheckpointError, UserError
from afm_scale.models.classifier import ClassifierConfig, DiTClassifier
from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from tests.checkpoint.planting import OLD, Planted

PUBLISHED = Path(__file__).resolve().parents[1] / "golden" / "formats"
OURS = ("native", "torch", "safetensors")


def tensors_of(source: Source) -> dict[str, Tensor]:
    return {name: source.read(name) for name in source.tensors}


def require_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def opened(path: Path, **told: int) -> Source:
    return format_of("auto", path).source(path, Told(**told))


def file_of(kind: str, folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / f"{kind}.pth"
    torch.save(OrderedDict(state), path)
    return path


@pytest.mark.parametrize("run", ["afm", "afm_moments", "classifier", "flow_matching"])
def test_a_run_goes_through_all_of_our_formats_and_comes_back_as_it_was(tmp_path: Path, run: str) -> None:
    with opened(OLD / run) as source:
        wanted, about = tensors_of(source), source.about
        FORMATS["safetensors"].write(source, tmp_path / "a", Wanted(shard_bytes=4000))
    assert (tmp_path / "a" / "model.safetensors.index.json").is_file()
    for before, after, kind in (("a", "b", "torch"), ("b", "c", "native"), ("c", "d", "torch")):
        with opened(tmp_path / before) as source:
            FORMATS[kind].write(source, tmp_path / after, Wanted())
    for name in "abcd":
        with opened(tmp_path / name) as source:
            require_same(tensors_of(source), wanted)
            assert (source.about.card, source.about.step, source.about.scalars) == (
                about.card, about.step, about.scalars
            )
    assert set(torch.load(tmp_path / "d", weights_only=True, mmap=True)) > {"afm_scale", "average"}


@pytest.mark.parametrize("name", sorted(path.stem for path in PUBLISHED.glob("official_*.pth")))
def test_a_published_file_becomes_ours_and_is_written_again_as_it_was(tmp_path: Path, name: str) -> None:
    file = PUBLISHED / f"{name}.pth"
    assert format_of("auto", file).name == "official"
    with opened(file, heads=3) as source:
        FORMATS["native"].write(source, tmp_path / "native", Wanted())
    with opened(tmp_path / "native") as source:
        FORMATS["official"].write(source, tmp_path / "again.pth", Wanted())
    with zipfile.ZipFile(tmp_path / "again.pth") as archive:
        assert archive.testzip() is None
    given, again = (torch.load(path, weights_only=True) for path in (file, tmp_path / "again.pth"))
    require_same(dict(again), dict(given))
    assert list(again) == list(given)


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "two steps": lambda: DiTGenerator(
        GeneratorConfig(patch_size=4, hidden_size=128, depth=2, num_heads=2, times="source"), (4, 16, 16), 11
    ),
    "any step": lambda: DiTGenerator(
        GeneratorConfig(patch_size=1, hidden_size=72, depth=1, num_heads=1, times="both"), (3, 5, 5), 3
    ),
    "discriminator": lambda: DiTDiscriminator(
        DiscriminatorConfig(patch_size=2, hidden_size=64, depth=4, num_heads=1, target_time=True), (4, 8, 8), 2
    ),
    "classifier of one class": lambda: DiTClassifier(
        ClassifierConfig(patch_size=2, hidden_size=64, depth=1, num_heads=1), (1, 4, 4), 1
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_size_of_a_published_network_is_read_from_its_tensors(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    network = NETWORKS[kind]()
    state = {name: torch.randn(tensor.shape).to(dtype) for name, tensor in network.state_dict().items()}
    with FORMATS["official"].source(file_of("x", tmp_path, state), Told()) as source:
        card = source.card()
        require_same({name.partition(".")[2]: tensor for name, tensor in tensors_of(source).items()}, state)
    described = card.networks[card.learner]
    assert (described["depth"], described["patch_size"]) == (len(network.blocks), network.patch_size)
    assert described["num_heads"] == network.blocks[0].attn.num_heads
    height, width = (size * network.patch_size for size in network.grid)
    assert card.shape == (network.x_embedder.proj.in_channels, height, width)


def test_heads_that_no_shape_shows_are_asked_for(tmp_path: Path) -> None:
    with opened(PUBLISHED / "official_1nfe.pth") as source:
        with pytest.raises(CheckpointError, match="width is 48.*--heads"):
            FORMATS["native"].write(source, tmp_path / "out", Wanted())
        FORMATS["safetensors"].write(source, tmp_path / "weights", Wanted())  # which can do without
    assert not (tmp_path / "out").exists()


def test_torch_files_hold_views_scalars_and_types_of_all_kinds(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).view(4, 6)
    state = {
        "rows": whole[1:3], "turned": whole.t(), "one": torch.tensor(3.5), "none": torch.empty(0, 3),
        "half": whole.to(torch.bfloat16), "small": whole.to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(whole), "whole numbers": torch.arange(5),
    }
    others = {
        "args": argparse.Namespace(lr=1e-4, image_size=256, name="x"), "best": np.float64(0.25), "steps": np.int64(7),
        "betas": (0.9, 0.999), "state": {0: {"exp_avg": whole}}, "size": torch.Size([2, 3]), "negative": -5,
    }
    torch.save({"model": OrderedDict(state), **others}, tmp_path / "x.pt")
    with TorchFile(tmp_path / "x.pt") as file:
        found = file.content
        require_same(
            {name: lazy.read() for name, lazy in found["model"].items()},
            {name: tensor.detach().contiguous() for name, tensor in state.items()},
        )
        assert found["args"] == {"lr": 1e-4, "image_size": 256, "name": "x"}
        assert (found["best"], found["steps"], found["betas"]) == (0.25, 7, (0.9, 0.999))
        assert (found["size"], found["negative"]) == ((2, 3), -5)
        assert torch.equal(found["state"][0]["exp_avg"].read(), whole)


def test_safetensors_are_those_of_the_format_s_own_library(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 2), "b": torch.randn(2).to(torch.bfloat16), "c": torch.arange(3)}
    save_file(state, tmp_path / "theirs.safetensors", metadata={"x": "y"})
    with SafetensorsFile(tmp_path / "theirs.safetensors") as file:
        require_same({name: lazy.read() for name, lazy in file.tensors.items()}, state)
        assert file.metadata == {"x": "y"}
    with opened(OLD / "afm") as source:
        FORMATS["safetensors"].write(source, tmp_path / "ours.safetensors", Wanted())
        require_same(load_file(tmp_path / "ours.safetensors"), tensors_of(source))
    assert json.loads((tmp_path / "config.json").read_text())["card"]["learner"] == "generator"


# What must not be.

def with_program(file: Path, marker: Path) -> None:
    """Puts a program into the pickle of a file of torch's."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickle.dumps(Planted(marker), protocol=2) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("kind", ["torch", "official"])
def test_a_program_in_a_torch_file_is_not_run(tmp_path: Path, kind: str) -> None:
    with opened(PUBLISHED / "official_dis_t.pth", heads=3) as source:
        FORMATS[kind].write(source, tmp_path / "x.pt", Wanted())
    with_program(tmp_path / "x.pt", tmp_path / "ran")
    for named in (kind, "auto"):
        with pytest.raises(CheckpointError, match="posix.mkdir, which no checkpoint"):
            format_of(named, tmp_path / "x.pt").source(tmp_path / "x.pt", Told())
    with pytest.raises(CheckpointError, match="posix.mkdir, which no checkpoint.*Nothing in it was run"):
        TorchFile(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("names", [
    ("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch.serialization", "load"), ("numpy", "load"),
    ("argparse", "FileType"), ("collections", "namedtuple"), ("torch.hub", "load"), ("_codecs", "decode"),
], ids=".".join)
def test_only_names_of_a_closed_list_are_admitted(tmp_path: Path, names: tuple[str, str]) -> None:
    program = b"\x80\x02c" + "\n".join(names).encode() + b"\nX\x01\x00\x00\x00x\x85R."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(CheckpointError, match=f"it names {names[0]}.{names[1]}"):
        TorchFile(tmp_path / "x.pt")


def test_a_pickle_that_refers_to_itself_or_grows_without_end_ends(tmp_path: Path) -> None:
    lists: list[object] = []
    for _ in range(40):
        lists = [lists, lists]  # 2^40 of them, if one counted
    circle: list[object] = []
    circle.append(circle)
    torch.save({"lists": lists, "circle": circle}, tmp_path / "x.pt")
    with TorchFile(tmp_path / "x.pt") as file:
        assert len(file.content) == 2


def test_a_tensor_that_claims_more_than_the_file_has_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1).expand(10**12)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="does not lie within"):
        TorchFile(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", [*OURS, "official"])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    with opened(PUBLISHED / "official_1nfe.pth", heads=3) as source:
        FORMATS[kind].write(source, out, Wanted())
    file = out if out.is_file() else max(out.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(file, file.stat().st_size * 2 // 3)
    with pytest.raises(CheckpointError), FORMATS[kind].source(out, Told()) as source:
        tensors_of(source)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_another_version_is_said(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(OLD / "afm") as source, monkeypatch.context() as patch:
        patch.setattr("afm_scale.checkpoint.formats.about.FORMAT_VERSION", 2)
        FORMATS[kind].write(source, tmp_path / "out", Wanted())
    with pytest.raises(CheckpointError, match="format version 2, this program reads version 1"):
        opened(tmp_path / "out")


def test_missing_and_surplus_keys_are_listed_with_the_nearest_name(tmp_path: Path) -> None:
    state = torch.load(PUBLISHED / "official_1nfe.pth", weights_only=True)
    state["blocks.1.attn.qkv.weigth"] = state.pop("blocks.1.attn.qkv.weight")
    with pytest.raises(CheckpointError) as caught:
        opened(file_of("x", tmp_path, state))
    assert "missing: blocks.1.attn.qkv.weight (there is blocks.1.attn.qkv.weigth)" in str(caught.value)
    assert "surplus: blocks.1.attn.qkv.weigth" in str(caught.value)


def test_a_tensor_of_another_size_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = torch.load(PUBLISHED / "official_1nfe.pth", weights_only=True)
    state["blocks.2.mlp.fc1.weight"] = torch.zeros(96, 48)
    with pytest.raises(CheckpointError, match=r"fc1.weight is \[96, 48\] there, \[192, 48\] wanted"):
        FORMATS["official"].source(file_of("x", tmp_path, state), Told())


@pytest.mark.parametrize("kind", [*OURS, "official"])
def test_what_is_there_is_not_replaced_and_a_full_disk_leaves_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(PUBLISHED / "official_1nfe.pth", heads=3) as source:
        (tmp_path / "there").write_text("mine")
        with pytest.raises(UserError, match="is there already"):
            FORMATS[kind].write(source, tmp_path / "there", Wanted())
        assert (tmp_path / "there").read_text() == "mine"

        def full() -> Tensor:
            raise OSError(28, "No space left on device")

        last = list(source.tensors)[-1]
        broken = source.with_tensors(source.tensors | {last: source.tensors[last]._replace(read=full)})
        with pytest.raises(UserError, match="No space left"):
            FORMATS[kind].write(broken, tmp_path / "new", Wanted())
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
