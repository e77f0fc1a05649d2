"""From a configuration to the objects of a run. The only place that knows which class belongs to which name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .. import __version__
from ..checkpoint.manager import CheckpointManager
from ..core.batch_size import microbatch_size
from ..core.run_folder import RunFolder
from ..core.schedules import AverageConfig
from ..core.typed import to_mapping
from ..core.types import PUBLISHED
from ..data.order import PositionedSource
from ..data.source import DataSource
from ..data.table import build_source
from ..models.encoding import build_encoder
from ..models.layers import initial_weights
from ..parallel.kinds.kind import Turn
from ..parallel.launch import Ranks
from ..parallel.plan import ParallelPlan
from ..train.agreeing_source import AgreeingSource
from ..train.average import Average
from ..train.state import TrainState
from .checkpoints import card_of_run
from .config import RunConfig
from .guides import frozen_networks
from .networks import build_learner, build_networks, build_objective, learner_of
from .origin import Origin
from .prompts import prompts_of


def build_plan(config: RunConfig, ranks: Ranks) -> ParallelPlan:
    """Raises ConfigError if the plan needs a package that is not installed."""
    config.parallel.check_packages()
    kind, accumulation = config.parallel.of_plan, config.loop.accumulation
    microbatch = microbatch_size(config.data.global_batch, kind.data_ranks(ranks.world_size), accumulation)
    return kind.build(ranks, config.parallel, Turn(microbatch=microbatch, accumulation=accumulation))


def build_state(
    config: RunConfig, ranks: Ranks, plan: ParallelPlan, *, frozen: Mapping[str, nn.Module] | None = None
) -> TrainState:
    """A run at step 0: the same weights for every plan and number of ranks.

    `frozen`: the networks that do not learn, where they are not to be read from their files.
    """
    seed, learner = config.loop.seed, learner_of(config)
    # First, because a recipe may leave their files open, and training may not.
    frozen = frozen_networks(config, plan) if frozen is None else frozen
    players = {
        role: plan.player(
            role, network, initial_weights(network, seed, role.value), getattr(config.optimizer, role.value)
        )
        for role, network in build_networks(config).items()
    }

    def average(chosen: AverageConfig) -> Average:
        network = build_learner(config)  # starts as a copy of the learner
        return Average(plan.frozen(network, initial_weights(network, seed, learner.value)), chosen, plan)

    return TrainState(
        players=players,
        averages={
            name: average(chosen) for name, chosen in {PUBLISHED: config.average, **config.objective.averages}.items()
        },
        objective=build_objective(config, plan.mean_, plan.device),
        data=_build_data(config, plan),
        frozen=frozen,
        prompts=prompts_of(config.data, plan.device),
    )


def _build_data(config: RunConfig, plan: ParallelPlan) -> DataSource:
    source = build_source(
        config.data, seed=config.loop.seed, rank=plan.data_rank, world_size=plan.num_data_ranks, device=plan.device,
        encoder_of=build_encoder,
    )
    reads_files = not isinstance(source, PositionedSource)
    return AgreeingSource(source) if reads_files and plan.world_size > 1 else source


def build_manager(config: RunConfig, ranks: Ranks, origin: Origin | None = None) -> CheckpointManager:
    """The run's checkpoints. Their manifests hold the configuration, so that a checkpoint can be used by itself."""
    versions = {"afm_scale": __version__, "torch": torch.__version__}
    said = {} if origin is None else {"run": origin.run, "data": origin.data}
    description = {"config": to_mapping(config), "versions": versions, **said}
    return CheckpointManager(
        RunFolder(config.run.folder).checkpoints, config.checkpoint, rank=ranks.rank, world_size=ranks.world_size,
        description=description, card=card_of_run(config),
    )
