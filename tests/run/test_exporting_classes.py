"""Every other class of transformers: begun from a folder of diffusers, exported, drawn from by diffusers alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import diffusers
import pytest
import torch

from afm_scale.__main__ import main
from afm_scale.flow.path import Prediction
from afm_scale.parallel.launch import Ranks
from afm_scale.run.checkpoints import open_checkpoint
from afm_scale.sampling.sampler import sample
from tests.models.large.classes import CLASSES, LENGTH, WIDTH, network, plain
from tests.models.large.small import SHAPE

_RANKS = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


def trained(name: str, folder: Path) -> Path:
    one = CLASSES[name]
    plain(name, network(name)).save_pretrained(folder / "pretrained")
    text = f"{{length: {LENGTH}, width: {WIDTH}, pooled: {one.pooled}}}"
    assert main([
        "train", "digits_twin_flow", "parallel.device=cpu", "report=null", "hooks.samples=null", "loop.steps=1",
        "objective.warm_up_steps=0", "average.decay=0", "optimizer.generator.learning_rate=1e-2",
        "hooks.metrics.tensorboard=false",
        f"data={{kind: synthetic, global_batch: 4, shape: [4, 8, 8], num_classes: 3, text: {text}}}",
        f"model.generator={{kind: diffusers, class_name: {one.class_name}, config: {json.dumps(one.settings)}, "
        f"weights: '{folder / 'pretrained'}'}}", f"run.folder={folder / 'run'}",
    ]) == 0
    return folder / "run"


@pytest.mark.parametrize("name", CLASSES)
def test_an_export_is_loaded_by_diffusers_and_its_script_draws_what_this_program_draws(name, tmp_path) -> None:
    run, out = trained(name, tmp_path), tmp_path / "exported"
    assert main(["export", str(run), str(out)]) == 0
    checkpoint = open_checkpoint(run)
    _, weights = checkpoint.average()
    loaded = getattr(diffusers, CLASSES[name].class_name).from_pretrained(out / "transformer")
    assert all(torch.equal(value, weights[f"transformer.{part}"]) for part, value in loaded.state_dict().items())
    subject = checkpoint.subject(_RANKS, checkpoint.parallel)
    noise, labels = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 2, -1])
    told, t = subject.prompts.rows(labels), torch.tensor([0.25, 0.5, 1.0])
    with torch.no_grad():
        theirs = CLASSES[name].velocity(loaded, noise, t, told)
        assert torch.equal(subject.told(noise, t, t, labels), theirs)
    spec = importlib.util.spec_from_file_location("exported_sampler", out / "sample.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    transformer = script.load_transformer(out)
    for steps in (1, 2):
        ours = sample(subject.told, noise, labels, num_steps=steps, prediction=Prediction.V)
        assert torch.equal(ours, script.sample(transformer, noise, *CLASSES[name].given(told), steps))
        assert (ours - noise).abs().max() > 0.01
    assert max(map(len, (out / "sample.py").read_text().splitlines())) <= 120
