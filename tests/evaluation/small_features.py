"""Weights and TorchScript files made here, in the form of the published ones."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from afm_scale.core.random import tensor_generator
from afm_scale.evaluation.features.inception import FeatureExtractorInceptionV3


class _Unfilled(FeatureExtractorInceptionV3):
    def load_state_dict(self, *arguments: object, **options: object) -> None:
        """Nothing: the names and shapes are wanted, without a file."""


def random_inception_weights(seed: int = 0) -> dict[str, Tensor]:
    """Of the whole network, scaled so that images of noise reach its end with features of ordinary size."""
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng(devices=[]):
        network = _Unfilled("inception", ["2048"], feature_extractor_weights_path=nothing)
    return {name: _random(name, value, seed) for name, value in network.state_dict().items()}


def _random(name: str, value: Tensor, seed: int) -> Tensor:
    generator = tensor_generator("inception", seed, name)
    if value.dtype == torch.int64:
        return value
    noise = torch.randn(value.shape, generator=generator)
    if value.ndim == 4:
        return noise * (2 / value[0].numel()) ** 0.5
    if name.endswith("running_var") or name.endswith("bn.weight"):
        return torch.exp(0.1 * noise)
    return 0.1 * noise


def saved_script(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of TorchScript as a whole
        torch.jit.script(network).save(str(path))
    return path
