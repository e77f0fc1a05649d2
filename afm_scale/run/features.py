"""From the configuration of features to their extractor. Optional packages are imported here, when they are named."""

from __future__ import annotations

import torch

from ..checkpoint.names import AVERAGE
from ..checkpoint.tensors import digest
from ..core.errors import CheckpointError
from ..core.packages import require
from ..core.types import Role
from ..core.weights import first_misfit
from ..evaluation.features.classifier import ClassifierFeatures, FeatureClassifier
from ..evaluation.features.extractor import (
    PUBLISHED,
    ClassifierFeaturesConfig,
    Extractor,
    FeaturesConfig,
    InceptionConfig,
    PixelFeatures,
    PixelsConfig,
    TorchScriptConfig,
)
from ..evaluation.features.tiles import Tiled
from ..evaluation.features.torchscript import TorchScriptFeatures, TorchScriptInception
from ..evaluation.features.weights_file import check_published_there, check_there
from .checkpoints import open_checkpoint


def build_extractor(config: FeaturesConfig, device: torch.device | str) -> Extractor:
    """Raises ConfigError or CheckpointError if a package, a file or a checkpoint is missing or of another kind."""
    device = torch.device(device)
    if isinstance(config, PixelsConfig):
        return PixelFeatures()
    if isinstance(config, TorchScriptConfig):
        return Tiled(TorchScriptFeatures(config, device))
    if isinstance(config, ClassifierFeaturesConfig):
        return Tiled(_classifier_features(config, device))
    return Tiled(_inception(config, device))


def check_extractor(config: FeaturesConfig) -> None:
    """Raises ConfigError or CheckpointError for what `build_extractor` would find missing, by names alone."""
    if isinstance(config, TorchScriptConfig):
        check_there(config.file, setting="file")
    elif isinstance(config, ClassifierFeaturesConfig):
        open_checkpoint(config.checkpoint, holds=Role.CLASSIFIER)
    elif isinstance(config, InceptionConfig):
        if config.route != "torchscript":
            _require_torch_fidelity()
        check_published_there(config.weights, PUBLISHED[config.route])


def _require_torch_fidelity() -> None:
    require(
        "torch_fidelity", "features.kind 'inception' via torch-fidelity", "evaluation",
        command="pip install --no-deps -c constraints.txt torch-fidelity",
    )


def _inception(config: InceptionConfig, device: torch.device) -> Extractor:
    if config.route == "torchscript":
        return TorchScriptInception(config, device)
    _require_torch_fidelity()
    from ..evaluation.features.inception import Inception

    return Inception(config, device)


def _classifier_features(config: ClassifierFeaturesConfig, device: torch.device) -> Extractor:
    checkpoint = open_checkpoint(config.checkpoint, holds=Role.CLASSIFIER)
    network, given = checkpoint.average()
    assert isinstance(network, FeatureClassifier), type(network)
    misfit = first_misfit(given, network.state_dict())
    if misfit is not None:
        raise CheckpointError(f"{checkpoint.path} gives no features: {misfit}; use another checkpoint")
    network.load_state_dict({name: value.to(device, torch.float32) for name, value in given.items()}, assign=True)
    return ClassifierFeatures(
        network.eval().requires_grad_(False), device=device, time=config.time, shape=checkpoint.card.shape,
        name=f"classifier {digest(checkpoint.path, AVERAGE)[:16]}, time {config.time:g}",
    )
