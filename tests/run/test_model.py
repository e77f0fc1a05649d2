"""Three lines of Python: what is drawn, what is said of it, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import afm_scale
from afm_scale.core.errors import CheckpointError, ConfigError, UserError
from afm_scale.sampling.order import npz_order
from afm_scale.sampling.pictures import to_uint8
from tests.program import ROOT, run

OLD = ROOT / "tests" / "golden" / "checkpoints"  # of commit 7cad6c0, see about.json there
GENERATORS = {"afm": 1, "flow_matching": 4, "afm_moments": 1}  # and the steps its images were drawn in


@pytest.mark.parametrize("name, steps", GENERATORS.items())
def test_it_draws_what_was_drawn(name: str, steps: int) -> None:
    recorded = load_file(OLD / f"{name}.safetensors")
    model = afm_scale.load(OLD / name)
    images = model.sample([number % 10 for number in range(20)], steps=steps, seed=5)
    assert (images.shape, images.dtype, images.device.type) == ((20, 1, 8, 8), torch.float32, "cpu")
    shuffled = to_uint8(images)[npz_order(20)].permute(0, 2, 3, 1)
    assert (shuffled.int() - recorded["images"].int()).abs().max() <= 1  # a grey level, where a rounding falls
    assert (model.shape, model.num_classes, model.step, model.draws_latents) == ((1, 8, 8), 10, 3, False)
    assert model.path.name == "step_00000003"


def test_its_images_are_those_of_the_command_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    labels = [7, 0, 7, 3] * 20
    code, _, told = run(
        "sample", OLD / "flow_matching", "--out", tmp_path, "--num", str(len(labels)), "--labels", "7,0,7,3",
        "--seed", "2", "--steps", "3", "--npz", tmp_path / "samples.npz", "--device", "cpu",
    )
    assert code == 0, told
    images = afm_scale.load(str(OLD / "flow_matching"), device="cpu").sample(torch.tensor(labels), steps=3, seed=2)
    with np.load(tmp_path / "samples.npz") as samples:
        assert np.array_equal(samples["arr_0"], to_uint8(images)[npz_order(80)].permute(0, 2, 3, 1).numpy())
        assert np.array_equal(samples["labels"], torch.tensor(labels)[npz_order(80)].numpy())
    for number in (0, 79):
        assert np.array_equal(np.array(Image.open(tmp_path / f"{number:06d}.png")), to_uint8(images)[number, 0].numpy())


def test_an_image_does_not_depend_on_what_else_is_asked_for_and_its_steps_are_the_recipe_s() -> None:
    model = afm_scale.load(OLD / "flow_matching")
    every, first = model.sample(list(range(10)) * 4, seed=1), model.sample([0, 1], steps=16, seed=1)
    assert torch.equal(every[:2], first)
    assert model.sample([]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("labels, steps, told", [
    ([3, 10], None, "labels: there is no class 10; this model has classes 0 to 9"), ([-1], None, "no class -1"),
    ([1], 0, "steps is 0; it must be at least 1"),
])
def test_what_cannot_be_drawn_is_told(labels: list[int], steps: int | None, told: str) -> None:
    with pytest.raises(UserError, match=told):
        afm_scale.load(OLD / "afm").sample(labels, steps=steps)


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a classifier; wanted a generator's checkpoint"):
        afm_scale.load(OLD / "classifier")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        afm_scale.load(tmp_path)
    with pytest.raises(ConfigError, match="vae somewhere: this model draws pixels"):
        afm_scale.load(OLD / "afm", vae="somewhere")


def test_loading_leaves_the_arithmetic_of_the_process_as_it_is() -> None:
    before = torch.backends.cuda.matmul.fp32_precision == "tf32", torch.is_grad_enabled()
    assert not afm_scale.load(OLD / "afm").sample([1]).requires_grad
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32", torch.is_grad_enabled()) == before


COST = """
import sys, time
began = time.perf_counter()
import afm_scale
seconds = time.perf_counter() - began
print(seconds, "torch" in sys.modules, sorted(afm_scale.__all__))
"""


def test_importing_the_package_imports_no_torch_and_takes_no_time() -> None:
    found = subprocess.run([sys.executable, "-c", COST], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    seconds, has_torch, public = found.split(maxsplit=2)
    assert (has_torch, public.strip()) == ("False", "['__version__', 'load']")
    assert float(seconds) < 3  # wanted: 0.3 on an idle machine
