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
from ..parallel.compile import compile_blocks
from ..parallel.plan import ParallelPlan
from .check import first_mismatch
from .config import RunConfig
from .networks import build_classifier, build_generator, learner_of
from .typed import from_mapping, to_mapping


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
    given = _classifier_weights(weights, config)
    mismatch = first_mismatch(given, classifier.state_dict())
    if mismatch is not None:
        raise ConfigError(f"{weights} holds another classifier: {mismatch}; change model.classifier or the file")
    return _laid_out(classifier, given, config, plan)


def frozen_flow(config: RunConfig, plan: ParallelPlan) -> nn.Module | None:
    """The guiding flow model, built from its own checkpoint. Raises ConfigError if it does not fit the recipe."""
    folder = config.model.flow
    if folder is None:
        return None
    theirs, given = _average_of(folder, "model.flow", FlowMatchingConfig, config)
    if theirs.objective.class_dropout == 0:
        raise ConfigError(
            f"model.flow {folder} always saw the class of its samples, so it has no velocity without one to compare "
            "with; train it with objective.class_dropout=0.1"
        )
    return _laid_out(build_generator(theirs), given, config, plan)


def _laid_out(guide: nn.Module, weights: Mapping[str, Tensor], config: RunConfig, plan: ParallelPlan) -> nn.Module:
    """The guide as the plan lays it over the ranks, compiled where that is asked for."""
    wanted = config.model.compile_guides
    compile_blocks(guide, False if wanted is None and config.parallel.hooks_in_blocks else wanted, plan.device)
    return plan.frozen(guide, weights.items())


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


def _classifier_weights(path: Path, config: RunConfig) -> Mapping[str, Tensor]:
    if path.is_dir():
        theirs, given = _average_of(path, "model.classifier.weights", ClassificationConfig, config)
        _check_description(path, theirs, config)
        return given
    if not path.is_file():
        raise ConfigError(
            f"model.classifier.weights {path}: no such file; give a safetensors file, or the folder of a run"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"model.classifier.weights {path} is no safetensors file ({error}); restore it") from error


def _check_description(folder: Path, theirs: RunConfig, config: RunConfig) -> None:
    """Weights can fit another network: their shapes do not tell the number of heads."""
    found, wanted = to_mapping(theirs.model.classifier), to_mapping(config.model.classifier)
    differing = [name for name in {**wanted, **found} if name != "weights" and found.get(name) != wanted.get(name)]
    if differing:
        there, here = (", ".join(f"{name} {of.get(name)}" for name in differing) for of in (found, wanted))
        raise ConfigError(
            f"model.classifier.weights {folder} is of another classifier: {there} there, {here} here; describe the "
            "same one under model.classifier"
        )


def _average_of(
    folder: Path, setting: str, objective: type, config: RunConfig
) -> tuple[RunConfig, dict[str, Tensor]]:
    """The configuration and the averaged weights of the run's newest checkpoint.

    Its objective must be this one, and its data of the shape and the classes that `config` has.
    """
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
    for name in ("shape", "num_classes"):
        found, wanted = getattr(theirs.data, name), getattr(config.data, name)
        if found != wanted:
            raise ConfigError(f"{setting} {folder} was trained on data of {name} {found}, this recipe has {wanted}")
    return theirs, average_weights(checkpoint)
