"""An export of a transformer of diffusers: loaded by diffusers alone, it draws what this program draws."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import diffusers
import pytest
import torch

from afm_scale.__main__ import main
from afm_scale.flow.path import Prediction
from afm_scale.parallel.launch import Ranks
from afm_scale.run.checkpoints import Checkpoint, open_checkpoint
from afm_scale.sampling.sampler import sample
from tests.models.large.small import CLASS, SETTINGS, SHAPE

CPU = torch.device("cpu")
RECIPE = (
    "digits_twin_flow", "parallel.device=cpu", "report=null", "hooks.samples=null", "loop.steps=2",
    "objective.warm_up_steps=1", "average.decay=0", "optimizer.generator.learning_rate=1e-2",
    "hooks.metrics.tensorboard=false",
    "data={kind: synthetic, global_batch: 4, shape: [4, 8, 8], num_classes: 3, text: {length: 5, width: 12}}",
    f"model.generator={{kind: diffusers, class_name: {CLASS}, config: {json.dumps(SETTINGS)}}}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run from weights in a folder that are moved off zero."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    started = getattr(diffusers, CLASS)(**SETTINGS)
    for parameter in started.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    started.save_pretrained(folder / "pretrained")
    settings = (*RECIPE, f"model.generator.weights={folder / 'pretrained'}", f"run.folder={folder / 'run'}")
    assert main(["train", *settings]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    assert main(["export", str(run), str(run.parent / "exported")]) == 0
    return run.parent / "exported"


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Checkpoint:
    return open_checkpoint(run)


def script_of(exported: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_sampler", exported / "sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_holds_what_its_page_says(exported) -> None:
    found = sorted(path.name for path in exported.iterdir())
    assert found == ["README.md", "sample.py", "samples.png", "second_time.safetensors", "transformer"]
    assert "python sample.py --pipeline PIPELINE" in (exported / "README.md").read_text()


def test_diffusers_alone_loads_the_transformer_with_the_averages_weights(exported, checkpoint) -> None:
    loaded = getattr(diffusers, CLASS).from_pretrained(exported / "transformer")
    _, weights = open_checkpoint(checkpoint.path).average()
    state = loaded.state_dict()
    assert all(torch.equal(value, weights[f"transformer.{name}"]) for name, value in state.items())
    assert len(weights) == len(state) + 4


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_its_script_draws_what_this_program_draws(exported, checkpoint, steps) -> None:
    subject = open_checkpoint(checkpoint.path).subject(
        Ranks(rank=0, local_rank=0, world_size=1, device=CPU), checkpoint.parallel
    )
    script = script_of(exported)
    noise, labels = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 2, 1, -1])
    ours = sample(subject.told, noise, labels, num_steps=steps, prediction=Prediction.V)
    told = subject.prompts.rows(labels)
    theirs = script.sample(script.load_transformer(exported), noise, told.embeddings, told.mask, steps)
    assert torch.equal(ours, theirs) and (ours - noise).abs().max() > 0.01
    if steps == 2:
        halfway = script.sample(script.load_transformer(exported), noise, told.embeddings, told.mask, 2, [0.25])
        assert not torch.equal(halfway, ours)


def test_another_run_begins_with_the_exported_transformer(exported, tmp_path) -> None:
    settings = (f"model.generator.weights={exported / 'transformer'}", "model.generator.config=null", "loop.steps=0")
    assert main(["train", *RECIPE, *settings, "objective.warm_up_steps=0", f"run.folder={tmp_path / 'run'}"]) == 0
    _, weights = open_checkpoint(tmp_path / "run").average()
    theirs = getattr(diffusers, CLASS).from_pretrained(exported / "transformer").state_dict()
    assert all(torch.equal(weights[f"transformer.{name}"], value) for name, value in theirs.items())
    assert torch.equal(
        weights["second_time.linear_1.weight"], theirs["time_text_embed.timestep_embedder.linear_1.weight"]
    )


def test_the_shipped_script_is_python_in_plain_lines(exported) -> None:
    text = (exported / "sample.py").read_text()
    compile(text, "sample.py", "exec")
    assert max(map(len, text.splitlines())) <= 120 and "afm_scale" not in text


def test_it_samples_by_the_rows_of_its_prompts(run, tmp_path, capsys) -> None:
    shown = ["sample", str(run), "--latents", "--num", "3"]
    assert main([*shown, "--out", str(tmp_path / "drawn"), "--labels", "0,2"]) == 0
    assert main([*shown, "--out", str(tmp_path / "others"), "--labels", "3"]) == 2
    assert "there is no class 3" in capsys.readouterr().err
