"""The frozen networks that guide a generator: a classifier, or a flow model. They come from files of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoint.manifest import read_manifest, resolve_checkpoint
from ..checkpoint.tensors import read_tensors
from ..core.errors import CheckpointError, ConfigError
from ..core.types import Role
from ..objectives.classification import ClassificationConfig
from ..objectives.flow_matching import FlowMatchingConfig
from ..parallel.plan import ParallelPlan
from .check import first_mismatch
from .config import RunConfig
from .networks import build_classifier, build_generator, learner_of
from .typed import from_mapping


def frozen_classifier(config: RunConfig, plan: ParallelPlan) -> nn.Module | None:
    """The guiding classifier with its weights. Raises ConfigError if they are missing or of another network."""
    classifier = build_classifier(config)
    if classifier is None:
        return None
    weights = config.model.classifier.weights
    if weights is None:
        raise ConfigError(
            "model.classifier.weights is null: guidance needs a trained classifier; set model.classifier.weights to a "
            "safetensors file, or to the folder of a run of objective 'classification'"
        )
    given = _classifier_weights(weights)
    mismatch = first_mismatch(given, classifier.state_dict())
    if mismatch is not None:
        raise ConfigError(f"{weights} holds another classifier: {mismatch}; change model.classifier or the file")
    return plan.frozen(classifier, given.items())


def frozen_flow(config: RunConfig, plan: ParallelPlan) -> nn.Module | None:
    """The guiding flow model, built from its own checkpoint. Raises ConfigError if it does not fit the recipe."""
    folder = config.model.flow
    if folder is None:
        return None
    theirs, given = _average_of(folder, "model.flow", FlowMatchingConfig)
    for name in ("shape", "num_classes"):
        found, wanted = getattr(theirs.data, name), getattr(config.data, name)
        if found != wanted:
            raise ConfigError(f"model.flow {folder} was trained on data of {name} {found}, this recipe has {wanted}")
    return plan.frozen(build_generator(theirs), given.items())


def config_of(checkpoint: Path) -> RunConfig:
    """The configuration that a checkpoint was made with. Raises CheckpointError if it does not say."""
    description = read_manifest(checkpoint).description
    if "config" not in description:
        raise CheckpointError(f"{checkpoint} does not say how it was made; wanted a checkpoint written by train")
    return from_mapping(RunConfig, description["config"])


def generative_config_of(checkpoint: Path) -> RunConfig:
    """The same, for a checkpoint that images can be drawn from. Raises CheckpointError if it holds a classifier."""
    config = config_of(checkpoint)
    if learner_of(config) is not Role.GENERATOR:
        raise CheckpointError(f"{checkpoint} holds a {learner_of(config).value}; wanted a generator's checkpoint")
    return config


def average_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint by their names in the network, on the CPU."""
    return dict(_unprefixed(read_tensors(checkpoint, "average.")))


def _unprefixed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield name.removeprefix("average."), tensor


def _classifier_weights(path: Path) -> Mapping[str, Tensor]:
    if path.is_dir():
        return _average_of(path, "model.classifier.weights", ClassificationConfig)[1]
    if not path.is_file():
        raise ConfigError(
            f"model.classifier.weights {path}: no such file; give a safetensors file, or the folder of a run"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"model.classifier.weights {path} is no safetensors file ({error}); restore it") from error


def _average_of(folder: Path, setting: str, objective: type) -> tuple[RunConfig, dict[str, Tensor]]:
    """The configuration and the averaged weights of the run's newest checkpoint, whose objective must be this one."""
    try:
        checkpoint = resolve_checkpoint(folder)
        theirs = config_of(checkpoint)
    except CheckpointError as error:
        raise ConfigError(f"{setting}: {error}") from error
    if not isinstance(theirs.objective, objective):
        raise ConfigError(
            f"{setting} {folder} is a run of objective {theirs.objective.kind!r}; wanted "
            f"{objective.kind!r}, trained on the same data"
        )
    return theirs, average_weights(checkpoint)
