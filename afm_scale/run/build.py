"""From a configuration to the objects of a run. The only place that knows which class belongs to which name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from .. import __version__
from ..checkpoint.manager import CheckpointManager
from ..core.errors import ConfigError
from ..core.types import Role
from ..data.order import PositionedSource
from ..data.source import DataSource
from ..flow.path import Prediction
from ..models.classifier import ClassifierConfig, DiTClassifier
from ..models.layers import initial_weights
from ..parallel.launch import Ranks
from ..parallel.plan import ParallelPlan
from ..train.average import Average
from ..train.hooks.checkpoint import CheckpointHook
from ..train.hooks.console import ConsoleHook
from ..train.hooks.divergence import DivergenceGuard
from ..train.hooks.events import EventLog
from ..train.hooks.hook import Hook, HookList
from ..train.hooks.metrics import JsonLines, MetricsHook, MetricWriter
from ..train.hooks.samples import SamplesHook
from ..train.hooks.skipped import SkippedHook
from ..train.hooks.stop import StopHook
from ..train.hooks.tensorboard import TensorBoard
from ..train.state import TrainState
from ..train.together import TogetherSource
from . import check
from .config import DISCRIMINATORS, GENERATORS, OBJECTIVES, PLANS, RunConfig
from .sources import build_source
from .typed import to_mapping


def build_networks(config: RunConfig) -> dict[Role, nn.Module]:
    """The players' networks on the meta device: shapes without storage."""
    shape, num_classes = config.data.shape, config.data.num_classes
    with torch.device("meta"):
        networks = {Role.GENERATOR: build_generator(config)}
        if config.model.discriminator is not None:
            described = config.model.discriminator
            networks[Role.DISCRIMINATOR] = DISCRIMINATORS[type(described)](described, shape, num_classes)
    return networks


def build_generator(config: RunConfig) -> nn.Module:
    """The generator (or its average) on the meta device."""
    described = config.model.generator
    with torch.device("meta"):
        return GENERATORS[type(described)](described, config.data.shape, config.data.num_classes)


def build_classifier(config: RunConfig) -> nn.Module | None:
    """The guiding classifier on the meta device."""
    if config.model.classifier is None:
        return None
    with torch.device("meta"):
        return DiTClassifier(config.model.classifier, config.data.shape, config.data.num_classes)


def prediction_of(config: RunConfig) -> Prediction:
    """What the generator's output means: the objective knows."""
    return OBJECTIVES[type(config.objective)](config.objective, lambda value: value, torch.device("cpu")).prediction


def build_plan(config: RunConfig, ranks: Ranks) -> ParallelPlan:
    return PLANS[config.parallel.plan](ranks, config.parallel)


def build_state(config: RunConfig, ranks: Ranks, plan: ParallelPlan) -> TrainState:
    """A run at step 0: the same weights for every plan and number of ranks."""
    check.check_weights_are_named(config.model.classifier)
    seed = config.loop.seed
    optimizers = {Role.GENERATOR: config.optimizer.generator, Role.DISCRIMINATOR: config.optimizer.discriminator}
    players = {
        role: plan.player(role, network, initial_weights(network, seed, role.value), optimizers[role])
        for role, network in build_networks(config).items()
    }
    average = build_generator(config)  # starts as a copy of the generator
    frozen_average = plan.frozen(average, initial_weights(average, seed, Role.GENERATOR.value))
    classifier = build_classifier(config)
    return TrainState(
        players=players,
        average=Average(frozen_average, config.average, plan),
        objective=OBJECTIVES[type(config.objective)](config.objective, plan.mean_, plan.device),
        data=_build_data(config, ranks),
        classifier=classifier and plan.frozen(classifier, _read_classifier(classifier, config.model.classifier)),
    )


def _build_data(config: RunConfig, ranks: Ranks) -> DataSource:
    source = build_source(
        config.data, seed=config.loop.seed, rank=ranks.rank, world_size=ranks.world_size, device=ranks.device
    )
    reads_files = not isinstance(source, PositionedSource)
    return TogetherSource(source) if reads_files and ranks.world_size > 1 else source


@dataclass(frozen=True)
class Observers:
    """The hooks of a run, and those of its parts that the command needs by name."""

    hooks: HookList
    stop: StopHook
    events: EventLog


def build_observers(config: RunConfig, plan: ParallelPlan, manager: CheckpointManager) -> Observers:
    """Hooks in their order: what is seen is written before the guard may stop, and nothing is saved unguarded."""
    folder, chosen, first = config.run.folder, config.hooks, plan.rank == 0
    events = EventLog(folder / "events.jsonl", enabled=first)
    stop = StopHook(plan, events)
    guard = DivergenceGuard(plan, chosen.divergence, events)
    hooks: list[Hook] = []
    if first:
        hooks.append(ConsoleHook(chosen.console, total_steps=config.loop.steps))
    hooks.append(MetricsHook(plan, chosen.metrics, _metric_writers(config) if first else (), stop))
    hooks.append(SkippedHook(folder / "skipped", rank=plan.rank, world_size=plan.world_size, stop=stop))
    hooks.append(guard)
    if chosen.samples is not None:
        hooks.append(
            SamplesHook(
                plan, chosen.samples, folder=folder / "samples", seed=config.loop.seed,
                num_steps=config.sampling.num_steps, stop=stop,
            )
        )
    hooks.append(CheckpointHook(plan, config.checkpoint, manager, guard=guard, stop=stop, events=events))
    hooks.append(stop)
    return Observers(HookList(hooks), stop, events)


def build_manager(config: RunConfig, ranks: Ranks) -> CheckpointManager:
    """The run's checkpoints. Their manifests hold the configuration, so that a checkpoint can be used by itself."""
    description = {"config": to_mapping(config), "versions": {"afm_scale": __version__, "torch": torch.__version__}}
    folder: Path = config.run.folder / "checkpoints"
    return CheckpointManager(
        folder, config.checkpoint, rank=ranks.rank, world_size=ranks.world_size, description=description
    )


def _metric_writers(config: RunConfig) -> list[MetricWriter]:
    folder, chosen = config.run.folder, config.hooks.metrics
    writers: list[MetricWriter] = [JsonLines(folder / "metrics.jsonl")]
    if chosen.tensorboard:
        writers.append(TensorBoard(folder / "tensorboard"))
    if chosen.wandb is not None:
        from ..train.hooks.wandb import Wandb  # optional: imported only when the configuration names it

        writers.append(Wandb(folder, chosen.wandb))
    return writers


def _read_classifier(classifier: nn.Module, config: ClassifierConfig) -> list[tuple[str, torch.Tensor]]:
    """Raises ConfigError if the file is missing or of another model."""
    assert config.weights is not None
    if not config.weights.is_file():
        raise ConfigError(f"model.classifier.weights {config.weights}: no such file; give a safetensors file")
    given = load_file(config.weights)
    mismatch = check.first_mismatch(given, classifier.state_dict())
    if mismatch is not None:
        raise ConfigError(
            f"{config.weights} holds another classifier: {mismatch}; change model.classifier or the file"
        )
    return list(given.items())
