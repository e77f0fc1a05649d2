"""Runs that begin with weights of other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afm_scale.__main__ import main
from afm_scale.checkpoint.formats.format import Told, Wanted
from afm_scale.checkpoint.formats.sinusoids import on_other_sinusoids
from afm_scale.checkpoint.formats.table import FORMATS, format_of
from afm_scale.commands.show import show_command
from afm_scale.core.errors import CheckpointError
from afm_scale.core.sinusoids import time_sinusoids
from afm_scale.core.types import Role
from afm_scale.run.beginning import beginnings, opened, shapes, weights
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.run.networks import build_network
from tests.checkpoint.published import Planted, generator, saved, state_dict, training_checkpoint
from tests.program import run

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "formats"
SIZE = {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2}
OVERRIDES = [
    "data={kind: synthetic, shape: [4, 8, 8], num_classes: 5, global_batch: 4}", "objective.prediction=v",
    "report=null", "hooks.samples=null", "hooks.metrics.tensorboard=false", "parallel.device=cpu",
    *(f"model.{role}.{name}={value}" for role in ("generator", "discriminator") for name, value in SIZE.items()),
]


@pytest.fixture
def sit(tmp_path: Path) -> Path:
    return saved(state_dict(zero_sigma=True), tmp_path / "SiT.pt")


def config(path: Path, *overrides: str) -> RunConfig:
    return load(RunConfig, "digits_afm", [*OVERRIDES, f"run.initialise_from={path}", *overrides])


def begun(settings: RunConfig, role: Role) -> tuple[nn.Module, str]:
    """A player's network as a run begins, in float64, and what is said of it."""
    with opened(settings) as source:
        beginning = beginnings(settings, source)[role]
        network = build_network(settings, role).to_empty(device="cpu")
        network.load_state_dict(dict(weights(settings, role, beginning)))
        return network.double(), beginning.words(shapes(settings, role))


def pretrained(path: Path) -> nn.Module:
    with format_of("auto", path).source(path, Told(heads=2)) as source:
        return generator(source)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, 8, 8, dtype=torch.float64, generator=draws)
    return x, torch.rand(4, generator=draws), torch.arange(4)


@torch.no_grad()
def test_a_one_step_generator_begins_as_the_first_step_of_the_flow(sit: Path) -> None:
    network, said = begun(config(sit), Role.GENERATOR)
    (z, _, y), one = inputs(), torch.ones(4)
    torch.testing.assert_close(network(z, one, 0 * one, y), pretrained(sit)(z, one, one, y), rtol=0, atol=1e-5)
    assert "the time of noise added to y_embedder" in said and "dropped the row of labels" in said and "new" not in said


@pytest.mark.parametrize("embedding, tolerance", [("sit", 0.0), ("dit", 1e-5), ("diffusers", 1e-5)])
@torch.no_grad()
def test_a_generator_that_is_told_the_time_begins_as_the_flow_by_any_sinusoids(
    sit: Path, embedding: str, tolerance: float
) -> None:
    several = ["objective.times={kind: grid, steps: 4}", "model.generator.times=source",
               "model.discriminator.target_time=true"]
    settings = config(sit, *several, f"model.generator.time_embedding={embedding}")
    network, _ = begun(settings, Role.GENERATOR)
    x, t, y = inputs()
    torch.testing.assert_close(network(x, t, t, y), pretrained(sit)(x, t, t, y), rtol=0, atol=tolerance)


def test_an_any_step_and_a_deep_generator_take_what_they_have(sit: Path) -> None:
    every = ["objective.times={kind: any}", "model.generator.times=both", "model.discriminator.target_time=true"]
    _, said = begun(config(sit, *every), Role.GENERATOR)
    assert "t_embedder" in said.partition("dropped")[0] and "new t_tgt_embedder" in said
    _, said = begun(config(sit, "model.generator.repetitions=2"), Role.GENERATOR)
    assert "t_embedder" in said.partition("dropped")[0] and "new" not in said


@torch.no_grad()
def test_a_discriminator_begins_with_the_backbone_at_the_time_of_data(sit: Path) -> None:
    network, said = begun(config(sit), Role.DISCRIMINATOR)
    given, (x, _, y) = pretrained(sit), inputs()
    for name, block in network.blocks.named_parameters():
        assert torch.equal(block, given.blocks.get_parameter(name))
    condition = given.y_embedder(y) + given.t_embedder(torch.zeros(4))
    torch.testing.assert_close(network.y_embedder(y), condition, rtol=0, atol=1e-6)
    torch.testing.assert_close(network.tokens(x), given.tokens(x))
    assert "dropped" in said and "final_layer" in said and said.endswith("new dis_embed, final_layer")


def test_of_a_dit_the_final_layer_is_left_out_for_it_predicts_noise(tmp_path: Path) -> None:
    path = saved(training_checkpoint("DiT-XL/2", state_dict(), state_dict(), num_classes=5), tmp_path / "last.pt")
    network, said = begun(config(path), Role.GENERATOR)
    assert "dropped the row of labels" in said and "final_layer (it predicts noise, this one v)" in said
    assert not network.final_layer.linear.weight.any()
    same = ["objective={kind: flow_matching}", "model.discriminator=null", "optimizer.discriminator=null",
            "model.generator.times=source", "model.generator.kind=dit_diffusion"]
    network, said = begun(load(RunConfig, "digits_flow_matching", [
        *OVERRIDES[:1], *OVERRIDES[2:10], *same, f"run.initialise_from={path}",
    ]), Role.GENERATOR)
    assert "final_layer" in said.partition("dropped")[0]


@pytest.mark.parametrize("overrides, words", [
    (["model.generator.depth=3"], ["generator: missing: blocks.2", "depth 2"]),
    (["model.generator.hidden_size=64", "model.discriminator.hidden_size=64"], ["[32, 4, 2, 2] there, [64, 4, 2, 2]"]),
    (["data.num_classes=7"], ["5 classes there, of 7 here"]),
    (["run.initialise_format=official"], ["8 outputs for 4 channels"]),
])
def test_what_does_not_fit_ends_with_both_sizes_and_code_2(
    sit: Path, overrides: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = (f"run.initialise_from={sit}", f"run.folder={tmp_path / 'new'}")
    code = main(["train", "digits_afm", *OVERRIDES, *new, *overrides])
    told = capsys.readouterr().err
    assert code == 2 and all(word in told for word in words), told
    assert not (tmp_path / "new").exists() and len(told.splitlines()) == 1


def test_a_folder_of_diffusers_and_an_export_are_taken_as_the_file_they_came_from(sit: Path, tmp_path: Path) -> None:
    wanted, _ = begun(config(sit), Role.GENERATOR)
    with format_of("auto", sit).source(sit, Told(heads=2)) as source:
        for kind, tolerance in (("diffusers", 1e-5), ("safetensors", 0.0), ("native", 0.0)):
            FORMATS[kind].write(source, tmp_path / kind, Wanted())
            network, _ = begun(config(tmp_path / kind, f"run.initialise_format={kind}"), Role.GENERATOR)
            for name, value in wanted.state_dict().items():
                torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=tolerance)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(state_dict() | {"more": Planted(tmp_path / "ran")}, tmp_path / "dit.pt")
    for kind in ("auto", "dit", "sit", "official"):
        new = (f"run.initialise_from={path}", f"run.initialise_format={kind}", f"run.folder={tmp_path / 'new'}")
        assert main(["train", "digits_afm", *OVERRIDES, *new]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "ran").exists() and not (tmp_path / "new").exists()


def test_the_shipped_model_that_would_fit_is_named(tmp_path: Path) -> None:
    path = saved(state_dict(width=768, depth=12, classes=5), tmp_path / "SiT-B.pt")
    with pytest.raises(CheckpointError, match="inherit: .model/dit_b2."):
        begun(config(path), Role.GENERATOR)


def test_times_of_dit_cannot_be_told_as_sits_and_the_setting_is_named(tmp_path: Path) -> None:
    path = saved(state_dict(), tmp_path / "DiT.pt")
    several = ["objective.times={kind: grid, steps: 4}", "model.generator.times=source",
               "model.discriminator.target_time=true", "model.generator.time_embedding=sit"]
    with pytest.raises(CheckpointError, match="model.generator.time_embedding=dit"):
        begun(config(path, *several), Role.GENERATOR)


@pytest.mark.parametrize("found, wanted, times", [
    ("sit", "dit", None), ("sit", "diffusers", None), ("dit", "diffusers", [1, 0.75, 0.5, 0.25]),
])
def test_a_layer_on_other_sinusoids_is_the_same(found: str, wanted: str, times: list[float] | None) -> None:
    weight = 0.02 * torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    other = on_other_sinusoids(weight, found, wanted, times)
    t = torch.rand(500, generator=torch.Generator().manual_seed(1)) if times is None else torch.tensor(times)
    given, needed = (time_sinusoids(kind, t).double() for kind in (wanted, found))
    torch.testing.assert_close(given @ other.double().T, needed @ weight.double().T, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name, ranks", [("sit_pretrained", 1), ("sit_pretrained", 2), ("dit_training_checkpoint", 2)])
def test_a_run_begins_with_a_published_file_and_trains(name: str, ranks: int, tmp_path: Path) -> None:
    sizes = [text for role in ("generator", "discriminator") for text in
             (f"model.{role}.hidden_size=48", f"model.{role}.depth=3", f"model.{role}.num_heads=3")]
    code, _, told = run(
        "train", "digits_afm", *OVERRIDES, *sizes, "data.num_classes=7", "parallel.plan=fsdp2", "loop.steps=2",
        "hooks.metrics.every_steps=1", f"run.folder={tmp_path}", f"run.initialise_from={GOLDEN / name}.pth",
        ranks=ranks,
    )
    assert code == 0 and f"new run with weights of {GOLDEN / name}.pth: generator: copied" in told, told
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(row["generator/grad_norm"] > 0 for row in rows)


def test_the_recipe_from_a_sit_is_shown_before_the_file_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_command("afm_1step_xl2_from_sit", []) == 0
    assert "initialise_from: SiT-XL-2-256x256.pt" in capsys.readouterr().out


def test_a_flow_models_own_checkpoint_begins_a_network_that_is_told_intervals_too(tmp_path: Path) -> None:
    """Bit for bit at source = target, from the average; and a network of another size is refused in the usual words."""
    words = ["report=null", "hooks.samples=null", "hooks.metrics.tensorboard=false", "parallel.device=cpu",
             "parallel.plan=ddp", "data.global_batch=8", "model.generator.hidden_size=16", "checkpoint.every_steps=3"]
    flow = tmp_path / "flow"
    assert main(["train", "digits_flow_matching", f"run.folder={flow}", "loop.steps=3", *words]) == 0
    begins = [f"run.initialise_from={flow}", "model.generator.times=gated", "model.generator.negative_times=true"]
    found = tmp_path / "found"
    assert main(["train", "digits_flow_matching", f"run.folder={found}", "loop.steps=0", *words, *begins]) == 0
    start = json.loads((found / "events.jsonl").read_text().splitlines()[0])
    assert "copied" in start["where"] and "new interval_embedder, sign_embedder" in start["where"]
    with opened(load(RunConfig, "digits_flow_matching", [f"run.initialise_from={found}", *words])) as source:
        own = {name: lazy.read() for name, lazy in source.tensors.items()}
    with opened(load(RunConfig, "digits_flow_matching", [f"run.initialise_from={flow}", *words])) as source:
        given = {name: lazy.read() for name, lazy in source.tensors.items()}
    for name, tensor in given.items():
        if name.startswith("average."):
            assert torch.equal(own[name], tensor) and torch.equal(own[name.replace("average", "generator", 1)], tensor)
    code, _, told = run("train", "digits_flow_matching", f"run.folder={tmp_path / 'other'}", *words, *begins,
                        "model.generator.hidden_size=32")
    assert code == 2 and "is of another model: generator: " in told
