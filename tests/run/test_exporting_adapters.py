"""Adapters of every class: trained alone, saved alone, resumed, exported, and put on the base by diffusers and peft."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

import diffusers

from afm_scale.__main__ import main
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.core.run_folder import RunFolder
from afm_scale.flow.path import Prediction
from afm_scale.parallel.launch import Ranks
from afm_scale.run.checkpoints import open_checkpoint
from afm_scale.sampling.sampler import sample
from tests.models.large.classes import CLASSES, LENGTH, WIDTH, network, plain
from tests.models.large.small import SHAPE
from tests.models.small_pipeline import KINDS, with_nothing_else

_RANKS = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
_TARGETS = "[to_q, to_k, linear_1]"  # the last: in the embedding of time, of which there are two


def trained(name: str, folder: Path, run: str, steps: int, *settings: str) -> Path:
    one, base = CLASSES[name], folder / "base" / "transformer"
    if not base.exists():
        plain(name, network(name)).save_pretrained(base)
    targets = "[to_q, to_k]" if name == "z_image" else _TARGETS
    text = f"{{length: {LENGTH}, width: {WIDTH}, pooled: {one.pooled}}}"
    assert main([
        "train", "digits_twin_flow", "parallel.device=cpu", "report=null", "hooks.samples=null", f"loop.steps={steps}",
        "objective.warm_up_steps=0", "objective.interval=0.02", "average.decay=0.5", "hooks.metrics.tensorboard=false",
        "optimizer.generator.learning_rate=1e-2",
        f"data={{kind: synthetic, global_batch: 4, shape: [4, 8, 8], num_classes: 3, text: {text}}}",
        f"model.generator={{kind: diffusers, class_name: {one.class_name}, config: {json.dumps(one.settings)}, "
        f"weights: '{base}', lora: {{rank: 2, alpha: 3.0, targets: {targets}}}}}", f"run.folder={folder / run}",
        *settings,
    ]) == 0
    return folder / run


def saved(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(max(path for path in RunFolder(run).checkpoints.iterdir() if path.is_dir()), "")


def _pipeline_of(name: str, transformer: torch.nn.Module) -> Any:
    return with_nothing_else(
        KINDS[name][0], transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


def alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """But for the last bits: a product with few columns takes another kernel where its weights lie elsewhere."""
    return torch.allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_alone_are_saved_and_a_run_goes_on_from_them_bit_for_bit(precision, tmp_path) -> None:
    at_once = saved(trained("sana", tmp_path, "once", 2, f"parallel.precision={precision}"))
    for steps in (1, 2):
        run = trained("sana", tmp_path, "parts", steps, f"parallel.precision={precision}")
    parts = saved(run)
    assert at_once.keys() == parts.keys() and all(torch.equal(value, parts[name]) for name, value in at_once.items())
    assert all(".lora_" in name or ".second_time." in name for name in parts)
    assert {name.partition(".")[0] for name in parts} == {"generator", "average", "averages", "optimizer"}


@pytest.mark.parametrize("name", CLASSES)
def test_diffusers_puts_an_export_on_its_base_and_the_script_draws_what_this_program_draws(name, tmp_path) -> None:
    run, out = trained(name, tmp_path, "run", 2), tmp_path / "exported"
    assert main(["export", str(run), str(out)]) == 0
    assert not (out / "transformer").exists()
    checkpoint = open_checkpoint(run)
    subject = checkpoint.subject(_RANKS, checkpoint.parallel)
    noise, labels = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 2, -1])
    told, t = subject.prompts.rows(labels), torch.tensor([0.25, 0.5, 1.0])
    spec = importlib.util.spec_from_file_location("exported_sampler", out / "sample.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    loaded = getattr(diffusers, CLASSES[name].class_name).from_pretrained(tmp_path / "base" / "transformer")
    with torch.no_grad():
        before = CLASSES[name].velocity(loaded, noise, t, told)
        _pipeline_of(name, loaded).load_lora_weights(out / "lora", use_safetensors=True)
        theirs = CLASSES[name].velocity(loaded, noise, t, told)
        assert alike(subject.told(noise, t, t, labels), theirs) and (theirs - before).abs().max() > 1e-3
    transformer = script.load_transformer(out, tmp_path / "base")
    for steps in (1, 2):
        ours = sample(subject.told, noise, labels, num_steps=steps, prediction=Prediction.V)
        assert alike(ours, script.sample(transformer, noise, *CLASSES[name].given(told), steps))


def test_a_run_may_begin_with_the_adapters_of_another_and_not_on_another_base(tmp_path, capfd) -> None:
    first = trained("sana", tmp_path, "first", 2)
    again = trained("sana", tmp_path, "again", 1, f"run.initialise_from={first}", "optimizer.generator.learning_rate=0")
    before, after = saved(first), saved(again)
    names = [name for name in before if name.startswith("generator.")]
    assert names and all(torch.equal(before[name], after[name]) for name in names)
    plain("sana", network("sana", moved=0.06)).save_pretrained(tmp_path / "base" / "transformer")
    assert main(["export", str(first), str(tmp_path / "exported")]) == 2
    assert "are other weights than the adapters were trained on" in capfd.readouterr().err
    assert main(["train", str(RunFolder(first).config), "loop.steps=3"]) == 2
    assert "are other weights than the adapters were trained on" in capfd.readouterr().err
