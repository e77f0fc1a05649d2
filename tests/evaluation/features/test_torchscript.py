from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afm_scale.core.errors import ConfigError, DataError
from afm_scale.evaluation.features.extractor import PUBLISHED, InceptionConfig, TorchScriptConfig
from afm_scale.evaluation.features.torchscript import TorchScriptFeatures, TorchScriptInception
from tests.evaluation.small_features import saved_script

CPU = torch.device("cpu")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def named(file: Path, **settings: object) -> TorchScriptConfig:
    """A file whose SHA-256 is named."""
    return TorchScriptConfig(file=file, sha256=sha256_of(file), **settings)


def inception(path: Path) -> InceptionConfig:
    return InceptionConfig(weights=path, sha256=sha256_of(path))


class LikeNvidias(nn.Module):
    """Called as NVIDIA's file is: features, or probabilities with or without the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 12, generator=torch.Generator().manual_seed(0)))
        self.bias = nn.Parameter(torch.arange(5.0))

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        features = F.adaptive_avg_pool2d(img.to(torch.float32), [2, 2]).flatten(1)
        if return_features:
            return features
        logits = features @ self.weight.t()
        if not no_output_bias:
            logits = logits + self.bias
        return logits.softmax(dim=1)


class Flatten(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).to(torch.float32)


class HalfMeans(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=[2, 3]).half()


class Maps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


class FirstImages(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:1].flatten(1)


class ThirteenPixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ torch.ones(13, 2)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture
def flatten(tmp_path: Path) -> Path:
    return saved_script(Flatten(), tmp_path / "flatten.pt")


def test_nvidias_form_gives_the_pool_and_the_logits_without_the_bias(tmp_path: Path) -> None:
    network, images = LikeNvidias(), noise(3, 3, 4, 6)
    config = inception(saved_script(network, tmp_path / "inception.pt"))
    features = TorchScriptInception(config, CPU)(images)
    pool = F.adaptive_avg_pool2d(images.float(), (2, 2)).flatten(1)
    torch.testing.assert_close(features.pool, pool)
    wanted = (pool.double() @ network.weight.double().T).softmax(dim=1)
    torch.testing.assert_close(features.logits.double().softmax(dim=1), wanted, rtol=1e-4, atol=1e-7)
    assert features.logits.isfinite().all()
    assert (features.logits < -80).any()  # probabilities that are 0 in float32 have logits all the same
    assert features.spatial is None
    assert not features.pool.requires_grad


def test_the_name_tells_the_two_forms_of_inception_and_their_weights_apart(tmp_path: Path) -> None:
    path = saved_script(LikeNvidias(), tmp_path / "inception.pt")
    name = TorchScriptInception(inception(path), CPU).name
    assert name.startswith("inception via torchscript")
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] in name


def test_another_file_than_nvidias_is_refused(tmp_path: Path) -> None:
    path = saved_script(LikeNvidias(), tmp_path / "inception.pt")
    with pytest.raises(ConfigError, match=f"wanted {PUBLISHED['torchscript'].sha256}"):
        TorchScriptInception(InceptionConfig(weights=path), CPU)
    with pytest.raises(ConfigError, match=r"absent\.pt is not there.*inception-2015-12-05\.pt"):
        TorchScriptInception(InceptionConfig(weights=tmp_path / "absent.pt"), CPU)


def test_a_script_that_is_not_called_as_inception_is_refused(flatten: Path) -> None:
    with pytest.raises(DataError, match=r"does not take .*; wanted a file that is called as inception-2015"):
        TorchScriptInception(inception(flatten), CPU)(noise(1, 3, 4, 4))


def test_images_reach_the_network_as_configured(flatten: Path) -> None:
    images = noise(2, 3, 4, 4)

    def seen(**settings: object) -> Tensor:
        return TorchScriptFeatures(named(file=flatten, **settings), CPU)(images).pool.view(2, 3, 4, 4)

    torch.testing.assert_close(seen(input="uint8"), images.float(), rtol=0, atol=0)
    torch.testing.assert_close(seen(), images / 255)
    mean, std = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    wanted = torch.stack([(images[:, c] / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(seen(mean=mean, std=std), wanted)
    torch.testing.assert_close(seen(mean=(0.5,), std=(0.5,)), images / 127.5 - 1)


def test_images_are_resized_without_aliasing(flatten: Path) -> None:
    stripes = torch.tensor([0, 200], dtype=torch.uint8).repeat(8).expand(1, 3, 16, 16)  # a column black, a column grey
    extractor = TorchScriptFeatures(named(file=flatten, size=4, input="uint8"), CPU)
    small = extractor(stripes).pool.view(3, 4, 4)
    assert small.shape[1:] == (4, 4)
    assert ((small - 100).abs() <= 12).all()  # every second column alone would be 0 or 200
    same = noise(1, 3, 4, 4)
    torch.testing.assert_close(extractor(same).pool, same.flatten(1).float(), rtol=0, atol=0)


def test_grey_images_are_repeated_to_the_channels_of_the_network(flatten: Path) -> None:
    grey = noise(2, 1, 4, 4)
    three = TorchScriptFeatures(named(file=flatten), CPU)(grey).pool
    torch.testing.assert_close(three, (grey / 255).repeat(1, 3, 1, 1).flatten(1))
    one = TorchScriptFeatures(named(file=flatten, channels=1), CPU)
    assert one(grey).pool.shape == (2, 16)
    with pytest.raises(DataError, match="images of 1 channel, found 3"):
        one(noise(1, 3, 4, 4))


def test_features_of_half_precision_are_returned_in_float32(tmp_path: Path) -> None:
    path = saved_script(HalfMeans(), tmp_path / "half.pt")
    assert TorchScriptFeatures(named(file=path), CPU)(noise(2, 3, 4, 4)).pool.dtype == torch.float32


@pytest.mark.parametrize("network, found", [
    (Maps(), r"returns torch.float32 \[2, 3, 4, 4\] for 2 images"),
    (FirstImages(), r"returns torch.float32 \[1, 48\] for 2 images"),
    (Pair(), "returns tuple for 2 images"),
    (ThirteenPixels(), r"does not take torch.float32 images \[2, 3, 4, 4\] .*shapes cannot be multiplied"),
])
def test_a_network_of_other_images_or_another_result_is_refused(network: nn.Module, found: str, tmp_path: Path) -> None:
    extractor = TorchScriptFeatures(named(file=saved_script(network, tmp_path / "network.pt")), CPU)
    with pytest.raises(DataError, match=found):
        extractor(noise(2, 3, 4, 4))


def test_every_setting_is_in_the_name(flatten: Path, tmp_path: Path) -> None:
    others = [
        {"channels": 1}, {"size": 8}, {"input": "uint8"}, {"mean": (0.5,), "std": (0.5,)},
        {"mean": (0.5,), "std": (0.25,)}, {"file": saved_script(HalfMeans(), tmp_path / "half.pt")},
    ]
    names = {TorchScriptFeatures(named(**{"file": flatten} | other), CPU).name for other in ({}, *others)}
    assert len(names) == 7
    copy = tmp_path / "copy.pt"
    copy.write_bytes(flatten.read_bytes())
    assert TorchScriptFeatures(named(file=copy), CPU).name in names


def test_what_is_no_torchscript_is_refused(flatten: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    (tmp_path / "torn.pt").write_bytes(flatten.read_bytes()[:400])
    (tmp_path / "empty.pt").touch()
    for name in ("state.pt", "torn.pt", "empty.pt"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read as a TorchScript file"):
            TorchScriptFeatures(named(file=tmp_path / name), CPU)
    for path, told in ((tmp_path / "absent.pt", "absent.pt is not there"), (tmp_path, "it is a folder")):
        with pytest.raises(ConfigError, match=told):
            TorchScriptFeatures(TorchScriptConfig(file=path), CPU)


class Overwriting(nn.Module):
    """What a file can do: torch.from_file opens any file by its name, and a shared tensor is written back."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    def forward(self, images: Tensor) -> Tensor:
        others = torch.from_file(self.path, True, 4, dtype=torch.uint8).fill_(0)
        return images.flatten(1).to(torch.float32) + others.sum()


class Endless(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        while bool(images.numel() > 0):
            images = images + 1
        return images


@pytest.mark.parametrize("kind", ["torchscript", "inception"])
def test_a_program_that_nobody_named_is_not_read_at_all(kind: str, tmp_path: Path, monkeypatch) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was read"))
    for number, program in enumerate((Overwriting(victim), Endless())):
        path = saved_script(program, tmp_path / f"{number}.pt")
        for given in (None, "0" * 64):
            with pytest.raises(ConfigError, match=sha256_of(path)) as error:
                if kind == "torchscript":
                    TorchScriptFeatures(TorchScriptConfig(file=path, sha256=given), CPU)(noise(1, 3, 4, 4))
                else:
                    TorchScriptInception(InceptionConfig(weights=path, sha256=given), CPU)(noise(1, 3, 4, 4))
            assert "is a program" in str(error.value) or f"wanted {given}" in str(error.value)
    assert victim.read_bytes() == b"mine"


def test_this_is_what_a_named_program_can_do(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    TorchScriptFeatures(named(saved_script(Overwriting(victim), tmp_path / "x.pt")), CPU)(noise(1, 3, 4, 4))
    assert victim.read_bytes() == b"\0" * 4
