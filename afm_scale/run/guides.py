"""The networks that do not learn: guides and those of an objective's own. They come from files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError
from ..core.typed import to_mapping
from ..core.types import Role
from ..core.weights import first_misfit
from ..models.weights_file import read_safetensors
from ..objectives.objective import FrozenNetwork
from ..parallel.compile import compile_blocks
from ..parallel.plan import ParallelPlan
from .checkpoints import Checkpoint, open_checkpoint
from .config import RunConfig
from .networks import build_network
from .phases import guides_of


def frozen_networks(config: RunConfig, plan: ParallelPlan) -> dict[str, nn.Module]:
    """All that the objective asks, with their weights, as the plan lays them over the ranks.

    Raises ConfigError if one's weights are missing, of another network, or of other data.
    """
    return {name: _laid_out(*_with_weights(config, name), config, plan) for name in _names(config)}


def check_frozen(config: RunConfig, *, may_be_open: bool = False) -> None:
    """Raises ConfigError for what `frozen_networks` would find missing or of another run, by cards and names alone.

    `may_be_open`: a recipe that leaves the classifier's weights to its user may do so.
    """
    for name in _names(config):
        if _is_described(config, name):
            build_network(config, Role.CLASSIFIER)
            if may_be_open and config.model.classifier.weights is None:
                continue
            weights = _named_weights(config)
            if weights.is_dir():
                _check_description(weights, _classifier_run(weights, config, card_alone=True), config)
        else:
            _run_of(config, name, card_alone=True).network()


def frozen_modules(config: RunConfig) -> dict[str, nn.Module]:
    """The same on the meta device: shapes without storage. Of a run's checkpoint its card alone is read."""
    return {
        name: (
            build_network(config, Role.CLASSIFIER) if _is_described(config, name)
            else _run_of(config, name, card_alone=True).network()
        )
        for name in _names(config)
    }


def _names(config: RunConfig) -> tuple[str, ...]:
    """The guides, which the recipe names under `model`, then those of the objective's own."""
    return (*guides_of(config), *config.objective.frozen)


def _is_described(config: RunConfig, name: str) -> bool:
    """Whether it is the guiding classifier, whose network the recipe describes; the others come from other runs."""
    return name == "classifier" and name not in config.objective.frozen


def _with_weights(config: RunConfig, name: str) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """The network on the meta device, and its weights on the CPU, which are those of such a network."""
    if _is_described(config, name):
        whose = f"model.classifier.weights {config.model.classifier.weights}"
        network, given = _guiding_classifier(config)
    else:
        theirs = _run_of(config, name)
        whose = str(theirs.path)
        network, given = theirs.average()
    misfit = first_misfit(given, network.state_dict())
    if misfit is not None:
        raise ConfigError(f"{whose} cannot be used: {misfit}; describe the network it is of, or give other weights")
    return network, given


def _guiding_classifier(config: RunConfig) -> tuple[nn.Module, Mapping[str, Tensor]]:
    return build_network(config, Role.CLASSIFIER), _classifier_weights(_named_weights(config), config)


def _named_weights(config: RunConfig) -> Path:
    """The guiding classifier's. Raises ConfigError if none are named, or nothing is there."""
    weights = config.model.classifier.weights
    if weights is None:
        raise ConfigError(
            "model.classifier.weights is null: guidance needs a trained classifier; set model.classifier.weights to a "
            "safetensors file, or to the folder of a run of objective 'classification'"
        )
    if not weights.exists():
        raise ConfigError(
            f"model.classifier.weights {weights}: no such file; give a safetensors file, or the folder of a run"
        )
    return weights


def _classifier_run(folder: Path, config: RunConfig, *, card_alone: bool = False) -> Checkpoint:
    wanted = FrozenNetwork(weights=folder, role=Role.CLASSIFIER, objective="classification")
    return _checkpoint_of(wanted, "model.classifier.weights", config, card_alone=card_alone)


def _run_of(config: RunConfig, name: str, *, card_alone: bool = False) -> Checkpoint:
    """The checkpoint of another run that a name stands for."""
    if name not in config.objective.frozen:
        setting = "model.flow"
        wanted = FrozenNetwork(weights=config.model.flow, objective="flow_matching", hides_classes=True)
    else:
        setting, wanted = f"objective.{name}", config.objective.frozen[name]
    theirs = _checkpoint_of(wanted, setting, config, card_alone=card_alone)
    if wanted.hides_classes and theirs.card.class_dropout == 0:
        raise ConfigError(
            f"{setting} {wanted.weights} always saw the class of its samples, so it has no velocity without one to "
            "compare with; train it with objective.class_dropout=0.1"
        )
    return theirs


def _laid_out(guide: nn.Module, weights: Mapping[str, Tensor], config: RunConfig, plan: ParallelPlan) -> nn.Module:
    """The guide as the plan lays it over the ranks, compiled where that is asked for."""
    wanted = config.model.compile_guides
    can = config.parallel.of_plan.compiles_blocks
    compile_blocks(guide, False if wanted is None and not can else wanted, plan.device)
    return plan.frozen(guide, weights.items())


def _classifier_weights(path: Path, config: RunConfig) -> Mapping[str, Tensor]:
    if path.is_dir():
        theirs = _classifier_run(path, config)
        _check_description(path, theirs, config)
        return theirs.average()[1]
    try:
        return read_safetensors(path)
    except ValueError as error:
        raise ConfigError(f"model.classifier.weights {path}: {error}; restore it, or give another") from error


def _check_description(folder: Path, theirs: Checkpoint, config: RunConfig) -> None:
    """Weights can fit another network: their shapes do not tell the number of heads."""
    found, wanted = theirs.settings(Role.CLASSIFIER), to_mapping(config.model.classifier)
    differing = [name for name in {**wanted, **found} if name != "weights" and found.get(name) != wanted.get(name)]
    if differing:
        there, here = (", ".join(f"{name} {of.get(name)}" for name in differing) for of in (found, wanted))
        raise ConfigError(
            f"model.classifier.weights {folder} is of another classifier: {there} there, {here} here; describe the "
            "same one under model.classifier"
        )


def _checkpoint_of(
    wanted: FrozenNetwork, setting: str, config: RunConfig, *, card_alone: bool = False
) -> Checkpoint:
    """The newest checkpoint of a run.

    Its objective must be the one wanted, and its data of the shape and the classes that `config` has.
    """
    folder = wanted.weights
    try:
        theirs = open_checkpoint(folder, card_alone=card_alone)
    except CheckpointError as error:
        raise ConfigError(f"{setting}: {error}") from error
    card = theirs.card
    if wanted.objective not in (None, card.objective):
        raise ConfigError(
            f"{setting} {folder} is a run of objective {card.objective!r}; wanted "
            f"{wanted.objective!r}, trained on the same data"
        )
    if card.learner is not wanted.role:
        raise ConfigError(
            f"{setting} {folder} is the run of a {card.learner.value}; wanted that of a {wanted.role.value}"
        )
    for name, found in (("shape", card.shape), ("num_classes", card.num_classes)):
        needed = getattr(config.data, name)
        if found != needed:
            raise ConfigError(f"{setting} {folder} was trained on data of {name} {found}, this recipe has {needed}")
    return theirs
