from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afm_scale.core.arithmetic import full_float32
from afm_scale.core.errors import ConfigError, DataError
from afm_scale.core.typed import build
from afm_scale.evaluation.features.extractor import (
    ClassifierFeaturesConfig,
    InceptionConfig,
    PixelFeatures,
    TorchScriptConfig,
)


def test_pixels_are_scaled_as_the_data_are() -> None:
    images = torch.tensor([[[[0, 255], [51, 204]]]], dtype=torch.uint8)
    features = PixelFeatures()(images)
    torch.testing.assert_close(features.pool, torch.tensor([[-1.0, 1.0, -0.6, 0.6]]))
    assert features.spatial is None and features.logits is None


def test_pixels_of_large_images_are_refused_before_their_covariance_fills_the_memory() -> None:
    with pytest.raises(DataError, match=r"found \[3, 256, 256\].*covariance of 196,608 would take 288 GiB.*inception"):
        PixelFeatures()(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))


def test_the_form_of_inception_goes_by_the_suffix_unless_it_is_said() -> None:
    assert InceptionConfig().route == "torch-fidelity"
    assert InceptionConfig(weights=Path("inception-2015-12-05.pt")).route == "torchscript"
    assert InceptionConfig(weights=Path("any.bin"), via="torchscript").route == "torchscript"
    with pytest.raises(ConfigError, match="any.bin ends neither in .pth"):
        InceptionConfig(weights=Path("any.bin"))


def test_the_weights_of_inception_are_the_published_ones_unless_it_is_said() -> None:
    assert InceptionConfig().expected_sha256.startswith("6726825d")  # as the file's own name says
    assert InceptionConfig(via="torchscript").expected_sha256.startswith("f58cb9b6")
    assert InceptionConfig(sha256=None).expected_sha256 is None
    assert InceptionConfig(sha256="a" * 64).expected_sha256 == "a" * 64
    with pytest.raises(ConfigError, match="'6726825d' is neither 'published' nor null nor 64"):
        InceptionConfig(sha256="6726825d")


@pytest.mark.parametrize("settings, reason", [
    ({"size": 0}, "size: found 0, wanted a whole number from 1"),
    ({"mean": (0.5,)}, "go together"),
    ({"mean": (0.5,), "std": (0.5,), "input": "uint8"}, "normalises by itself"),
    ({"mean": (0.5, 0.5), "std": (0.5,)}, r"1 or 3 \(channels\) numbers"),
    ({"mean": (0.5,), "std": (0.0,)}, "found 0, wanted a number above 0"),
])
def test_torchscript_settings_that_make_no_sense_are_refused(settings: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(TorchScriptConfig, {"file": "network.pt", **settings})


def test_a_classifier_is_told_a_time_of_the_path() -> None:
    with pytest.raises(ConfigError, match="time: found 1.5, wanted a number from 0 to 1"):
        build(ClassifierFeaturesConfig, {"checkpoint": "run", "time": 1.5})


def test_features_are_computed_in_full_float32_and_the_run_goes_on_in_its_own_precision() -> None:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    one = torch.ones(2, 2, requires_grad=True)
    try:
        matmul.fp32_precision = "tf32"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with pytest.raises(DataError), full_float32(torch.device("cpu")):
                inside = one @ one
                assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
                raise DataError("met inside")
            after = one @ one
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", before[1])
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before
    assert (inside.dtype, inside.requires_grad) == (torch.float32, False)
    assert (after.dtype, after.requires_grad) == (torch.bfloat16, True)
