from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from afm_scale.core.errors import ConfigError, DataError, DivergenceError
from afm_scale.data.toys.mnist import read_mnist
from afm_scale.evaluation.toys.mnist import mnist_quality
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from tests.data.small import mnist_file
from tests.program import run

TINY = [
    "loop.steps=2", "data.global_batch=8", "hooks.samples=null", "report.num_samples=100",
    *(f"model.{player}.{size}" for player in ("generator", "discriminator")
      for size in ("depth=1", "hidden_size=16", "num_heads=2")),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mnist_file(tmp_path_factory.mktemp("mnist") / "digits.npz", count=1000)


def test_real_digits_of_the_part_itself_are_perfect_and_others_nearly_so(file: Path) -> None:
    test, tune = read_mnist(file, "test"), read_mnist(file, "tune")
    same = mnist_quality(test.x, test.y, file=file, part="test")
    assert abs(same.frechet_distance) < 1e-6 and same.precision == same.recall == 1.0
    other = mnist_quality(tune.x, tune.y, file=file, part="test")
    assert other.class_accuracy > 0.95 and other.real_accuracy > 0.95 and 0.8 < other.diversity < 1.2
    assert 0 < other.frechet_distance < 3 * other.real_frechet_distance


def test_noise_copies_and_wrong_classes_are_told_apart(file: Path) -> None:
    test = read_mnist(file, "test")
    real = mnist_quality(test.x, test.y, file=file, part="tune")
    noise = mnist_quality(torch.randn(test.x.shape, generator=torch.Generator().manual_seed(0)), test.y,
                          file=file, part="tune")
    assert noise.frechet_distance > 10 * real.frechet_distance and noise.precision == 0.0
    alike = torch.stack([test.x[test.y == label][0] for label in test.y])
    copies = mnist_quality(alike, test.y, file=file, part="tune")
    assert copies.diversity < 1e-6 and copies.recall < 0.5
    assert mnist_quality(test.x, (test.y + 1) % 10, file=file, part="tune").class_accuracy < 0.05


def test_samples_that_are_not_finite_and_files_too_small_to_judge_are_refused(file: Path, tmp_path: Path) -> None:
    x, y = torch.full((20, 1, 28, 28), torch.nan), torch.arange(20) % 10
    with pytest.raises(DivergenceError, match="not finite"):
        mnist_quality(x, y, file=file, part="tune")
    small = mnist_file(tmp_path / "small.npz", count=50)
    with pytest.raises(DataError, match="40 training digits of .* at least two classes and 65"):
        mnist_quality(torch.zeros_like(x), y, file=small, part="tune")


@pytest.mark.parametrize(("overrides", "told"), [
    (["data={kind: digits, global_batch: 64}"], "report.kind 'mnist' compares samples with data.file"),
    (["data.part=test"], "report.part 'test' is what data.part trains on"),
])
def test_a_report_that_cannot_be_made_is_refused_before_training(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check(load(RunConfig, "mnist_afm", overrides), 1)


def test_a_run_ends_with_its_figures_and_a_picture(file: Path, tmp_path: Path) -> None:
    code, _, stderr = run("train", "mnist_afm", f"data.file={file}", f"run.folder={tmp_path}", *TINY)
    assert code == 0, stderr
    quality = json.loads((tmp_path / "summary.json").read_text())["quality"]
    assert quality["compared_with"] == "the test part" and 0 <= quality["class_accuracy"] <= 1
    with Image.open(tmp_path / "samples" / "final.png") as picture:
        assert picture.width > 10 * 28 * 3 and picture.height > 10 * 28 * 3


def test_a_run_without_a_file_ends_with_what_to_give(tmp_path: Path) -> None:
    code, _, stderr = run("train", "mnist_afm", f"run.folder={tmp_path}")
    assert code == 2 and "data.file=FILE.npz" in stderr and "Traceback" not in stderr
