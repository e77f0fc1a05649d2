from __future__ import annotations

import hashlib
import importlib
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afm_scale.core.errors import ConfigError, DataError
from afm_scale.evaluation.features.extractor import PUBLISHED, InceptionConfig
from afm_scale.evaluation.features.inception import Inception
from tests.evaluation.small_features import random_inception_weights

CPU = torch.device("cpu")
TRUNK = [
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c",
]
REST = ["Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_inception_weights()


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def inception(file: Path) -> Inception:
    return Inception(InceptionConfig(weights=file, sha256=None), CPU)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 40, 24), generator=generator, dtype=torch.uint8)


def resized_as_tensorflow_1(images: Tensor, size: int) -> Tensor:
    """Pixel i comes from i * (old size / new size), without half-pixel centres; [B, C, size, size] float64."""
    for axis in (2, 3):
        old = images.shape[axis]
        place = torch.arange(size, dtype=torch.float64) * old / size
        low = place.floor().long()
        high = (low + 1).clamp(max=old - 1)
        share = (place - low).view(-1, *[1] * (3 - axis))
        images = images.double().index_select(axis, low) * (1 - share) + images.index_select(axis, high) * share
    return images


def test_the_features_are_those_of_an_independent_computation(
    inception: Inception, weights: dict[str, Tensor], images: Tensor
) -> None:
    features = inception(images)
    x = (resized_as_tensorflow_1(images, 299) - 128) / 128
    network = inception._network.double()
    try:
        for name in TRUNK:
            x = getattr(network, name)(x)
        # TensorFlow's mixed_6/conv: a 1 x 1 convolution without bias, batch normalisation with eps 0.001, ReLU.
        conv, bn = "Mixed_6d.branch1x1.conv", "Mixed_6d.branch1x1.bn"
        w = {name: value.double() for name, value in weights.items()}
        branch = torch.einsum("oc,bchw->bohw", w[f"{conv}.weight"][:, :, 0, 0], x)
        mean, variance, scale, shift = (
            w[f"{bn}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        branch = F.relu((branch - mean) / (variance + 0.001).sqrt() * scale + shift)
        for name in REST:
            x = getattr(network, name)(x)
    finally:
        network.float()
    pool = x.mean(dim=(2, 3))
    spatial = torch.stack([
        torch.stack([branch[b, channel, row, column] for row in range(17) for column in range(17)
                     for channel in range(7)])
        for b in range(len(images))
    ])
    assert features.spatial.shape == (3, 2023) and features.pool.shape == (3, 2048)
    assert features.pool.dtype == features.spatial.dtype == features.logits.dtype == torch.float32
    for found, wanted in ((features.spatial, spatial), (features.pool, pool),
                          (features.logits, pool @ weights["fc.weight"].double().T)):
        assert wanted.std() > 0.01
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_an_image_has_the_same_features_in_any_batch(inception: Inception, images: Tensor) -> None:
    together = inception(images)
    for number in range(len(images)):
        alone = inception(images[number:number + 1])
        for name in ("pool", "spatial", "logits"):
            torch.testing.assert_close(
                getattr(alone, name)[0], getattr(together, name)[number], rtol=1e-5, atol=1e-5
            )


def test_a_grey_image_is_one_of_three_equal_channels(inception: Inception, images: Tensor) -> None:
    grey = images[:1, :1]
    torch.testing.assert_close(inception(grey).pool, inception(grey.repeat(1, 3, 1, 1)).pool, rtol=0, atol=0)


def test_other_numbers_of_channels_are_refused(inception: Inception) -> None:
    with pytest.raises(DataError, match="3 channels, or grey ones, found 4 channels; latents have to be decoded"):
        inception(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_a_missing_file_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        Inception(InceptionConfig(), CPU)
    message, published = str(caught.value), PUBLISHED["torch-fidelity"]
    assert message.startswith(f"weights/{published.name} is not there")
    assert published.sha256 in message and "--weights FILE" in message and "95,628,359 bytes" in message


def test_other_weights_are_refused_unless_they_are_named(file: Path, inception: Inception) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ConfigError) as caught:
        Inception(InceptionConfig(weights=file), CPU)
    message = str(caught.value)
    assert f"SHA-256 {found}, wanted {PUBLISHED['torch-fidelity'].sha256}" in message
    assert PUBLISHED["torch-fidelity"].name in message
    with pytest.raises(ConfigError, match=f"wanted {'0' * 64};"):
        Inception(InceptionConfig(weights=file, sha256="0" * 64), CPU)
    assert Inception(InceptionConfig(weights=file, sha256=found), CPU).name == inception.name
    assert found[:16] in inception.name


def test_other_weights_are_other_features(inception: Inception, weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights | {"fc.bias": weights["fc.bias"] + 1}, tmp_path / "other.pth")
    other = Inception(InceptionConfig(weights=tmp_path / "other.pth", sha256=None), CPU)
    assert other.name != inception.name


def test_a_torn_file_is_said_to_be(file: Path, tmp_path: Path) -> None:
    for length in (0, 1000, file.stat().st_size - 1000):
        (tmp_path / "torn.pth").write_bytes(file.read_bytes()[:length])
        with pytest.raises(ConfigError, match="torn.pth cannot be read as weights .*is it torn"):
            Inception(InceptionConfig(weights=tmp_path / "torn.pth", sha256=None), CPU)


class _Touches:
    """Pickled, an order to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"fc.weight": _Touches(tmp_path / "made")}, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        Inception(InceptionConfig(weights=tmp_path / "code.pth", sha256=None), CPU)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content, reason", [
    ({"fc.weight": torch.zeros(2)}, "weights of another network"),
    ({"state": {"fc.weight": torch.zeros(2)}}, "something else than named tensors"),
    ([torch.zeros(2)], "something else than named tensors"),
])
def test_weights_of_something_else_are_refused(content: object, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=reason):
        Inception(InceptionConfig(weights=tmp_path / "other.pth", sha256=None), CPU)


def test_torchvision_is_not_needed_and_nothing_of_the_package_but_its_folder_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [*sys.modules]:
        ours = name == "afm_scale.evaluation.features.inception"
        if ours or name.partition(".")[0] in ("torch_fidelity", "torchvision"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    runpy.run_module("afm_scale.evaluation.features.inception")
    assert "torch_fidelity" not in sys.modules
    with pytest.raises(ImportError, match="torchvision"):
        importlib.import_module("torch_fidelity")  # the whole of it
