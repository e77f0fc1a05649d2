"""Conversions: published networks give the published outputs, parts are what they say, and both sides are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import afm_scale
from afm_scale.__main__ import main
from afm_scale.checkpoint.formats.format import Told, Wanted
from afm_scale.checkpoint.formats.table import format_of
from afm_scale.checkpoint.names import under
from afm_scale.core.types import Role
from afm_scale.models import layers
from afm_scale.run.converting import Conversion, convert, network_for
from afm_scale.run.fitting import recipes_that_fit
from tests.checkpoint.planting import OLD
from tests.checkpoint.test_formats import PUBLISHED
from tests.checkpoint.test_pretraining import as_where_golden_numbers_are_from

CASES = json.loads((PUBLISHED / "formats.json").read_text())["cases"]


def converted(source: Path, out: Path, to: str, **asked: object) -> Path:
    told = Told(heads=asked.pop("heads", None), repetitions=asked.pop("repetitions", None))
    values = {"source_format": "auto", "part": None, "dtype": None, "verify": None, "wanted": Wanted()} | asked
    done = convert(Conversion(source=source, out=out, out_format=to, told=told, **values))
    assert done.differences is not None and set(done.differences.values()) <= {0.0}
    return out


@pytest.mark.parametrize("name", sorted(path.stem for path in PUBLISHED.glob("official_*.pth")))
def test_a_converted_network_gives_the_published_outputs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "time_sinusoids", as_where_golden_numbers_are_from)
    repetitions = CASES[name].get("repetitions")
    out = converted(PUBLISHED / f"{name}.pth", tmp_path / "out", "native", heads=3, repetitions=repetitions)
    golden = load_file(PUBLISHED / "formats.safetensors")
    x, t, r, y = golden["x"].double(), golden["t"].float(), golden["r"].float(), golden["y"]
    with format_of("auto", out).source(out, Told()) as source:
        role = Role(CASES[name]["role"])
        weights = under("discriminator." if role is Role.DISCRIMINATOR else "average.", source.tensors)
        network = network_for(out, source.card(), role, weights).to_empty(device="cpu").double()
        network.load_state_dict({name: lazy.read().double() for name, lazy in weights.items()})
    with torch.no_grad():
        found = {
            Role.GENERATOR: lambda: network(x, t, r, y), Role.DISCRIMINATOR: lambda: network(x, t, y),
            Role.CLASSIFIER: lambda: network(x, t),
        }[role]()
    torch.testing.assert_close(found, golden[f"out.{name}"].view_as(found).double(), atol=1e-5, rtol=0)


def test_a_run_becomes_a_published_file_and_draws_the_same_pictures_again(tmp_path: Path) -> None:
    run = OLD / "flow_matching"
    with format_of("auto", run).source(run, Told()) as source:
        heads = source.card().networks[Role.GENERATOR].get("num_heads")
    if heads is None or source.card().networks[Role.GENERATOR].get("null_class"):
        run = OLD / "afm"
    file = converted(run, tmp_path / "x.pth", "official", heads=2)
    again = converted(file, tmp_path / "again", "native", heads=2)
    wanted, found = (afm_scale.load(path, device="cpu").sample([1, 2], seed=3, steps=1) for path in (run, again))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("part", ["average", "generator", "discriminator"])
def test_a_part_is_one_network_under_its_own_names(tmp_path: Path, part: str) -> None:
    out = converted(OLD / "afm", tmp_path / "out", "safetensors", part=part)
    found = load_file(out / "model.safetensors")
    with format_of("auto", OLD / "afm").source(OLD / "afm", Told()) as source:
        wanted = under(f"{part}.", source.tensors)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], lazy.read()) for name, lazy in wanted.items())


def test_another_type_of_number_is_said_to_differ(tmp_path: Path) -> None:
    done = convert(Conversion(
        source=OLD / "afm", source_format="native", out=tmp_path / "out", out_format="torch", part="average",
        dtype="bfloat16", verify=True, told=Told(), wanted=Wanted(),
    ))
    assert done.differences is not None and 0 < done.differences["average"] < 0.1
    average = torch.load(tmp_path / "out", weights_only=True)["average"]
    assert {tensor.dtype for tensor in average.values()} == {torch.bfloat16}


def test_the_recipe_that_would_fit_is_known() -> None:
    with format_of("auto", OLD / "afm").source(OLD / "afm", Told()) as source:
        shapes = {name: lazy.entry.shape for name, lazy in under("average.", source.tensors).items()}
    assert recipes_that_fit(Role.GENERATOR, shapes) == []  # a smaller one than any that is shipped


def test_an_export_is_sampled_loaded_and_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    assert main(["export", str(OLD / "afm"), str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "README.md", "samples.png"}
    page = (out / "README.md").read_text()
    assert "3 updates" in page and "samples.png" in page and '"seed"' in page  # step, picture and recipe
    wanted = afm_scale.load(OLD / "afm", device="cpu").sample([1, 2], seed=3)
    assert torch.equal(afm_scale.load(out, device="cpu").sample([1, 2], seed=3), wanted)
    assert main(["sample", str(out), "--out", str(tmp_path / "drawn"), "--num", "2", "--device", "cpu"]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
    assert main(["export", str(OLD / "afm"), str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_command_ends_with_one_message_and_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pth").write_bytes(b"PK\3\4 no archive")
    for named in ("auto", "official", "torch", "native", "safetensors"):
        words = ["--from", named, "--to", "native", str(tmp_path / "x.pth"), str(tmp_path / "out")]
        assert main(["convert_checkpoint", *words]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_two_checkpoints_are_compared_tensor_by_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect_checkpoint", str(OLD / "afm"), str(OLD / "afm_moments")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("only in B") and ".exp_avg " in line for line in lines)
    out = converted(OLD / "afm", tmp_path / "out", "torch")
    assert main(["inspect_checkpoint", str(OLD / "afm"), str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("have equal values; largest difference 0")


def test_the_example_of_the_page_loads_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md").read_text()
    examples = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    assert main(["export", str(OLD / "afm"), str(tmp_path / "digits_model")]) == 0
    monkeypatch.chdir(tmp_path)
    for example in examples:
        assert len(example.splitlines()) <= 10
        found: dict[str, torch.Tensor] = {}
        exec(example, found)
        assert found["images"].shape == (3, 1, 8, 8)
