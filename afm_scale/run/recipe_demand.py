"""How many samples a second a recipe's training step takes from its data source, on one GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.errors import ConfigError
from ..core.random import KeyedDraws, Positions
from ..core.types import Batch, Networks, Role
from ..estimate.flops import PEAK_TFLOPS, turn_flops
from ..train.loop import loss_of
from .config import OBJECTIVES, RunConfig
from .networks import build_classifier, build_networks, learner_of

_COUNTED_BATCH = 8  # samples; penalties on a share of a quarter come out whole


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one GPU asks of its source if it takes every step by itself; n GPUs that share the steps ask n times that.

    `how` says whether the seconds were given or estimated, and from what.
    """

    recipe: str
    turns: int  # of a step; each takes fresh data
    global_batch: int
    tflop_per_sample: float | None  # of a whole step, for each sample of its global batch; None: not counted
    step_seconds: float  # of the whole global batch on one GPU
    images_per_second: float
    how: str


def demand(
    config: RunConfig, name: str, *, step_seconds: float | None, gpu: str, utilisation: float
) -> Demand:
    """Raises ConfigError for a GPU that is not known or impossible figures."""
    turns = _objective(config).turns(0)
    flops = None
    if step_seconds is None:
        if gpu not in PEAK_TFLOPS:
            raise ConfigError(f"the peak of a '{gpu}' is not known; known are {', '.join(PEAK_TFLOPS)}; "
                              "choose one with --gpu, or give --step-seconds")
        if not 0 < utilisation <= 1:
            raise ConfigError(f"--utilisation {utilisation} is a share of the peak: more than 0, at most 1")
        flops = step_flops_per_sample(config)
        step_seconds = config.data.global_batch * flops / (PEAK_TFLOPS[gpu] * 1e12 * utilisation)
        how = (
            f"estimated: {flops / 1e12:.3g} TFLOP a sample (counted: forward and backward of all turns) at "
            f"{utilisation:.0%} of the {PEAK_TFLOPS[gpu]} TFLOP/s of dense bf16 that one {gpu} has by its data sheet"
        )
    elif step_seconds <= 0:
        raise ConfigError(f"--step-seconds {step_seconds} must be more than 0")
    else:
        how = "from the seconds given for a step of one GPU"
    samples = len(turns) * config.data.global_batch
    return Demand(
        recipe=name, turns=len(turns), global_batch=config.data.global_batch,
        tflop_per_sample=None if flops is None else flops / 1e12,
        step_seconds=step_seconds, images_per_second=samples / step_seconds, how=how,
    )


def step_flops_per_sample(config: RunConfig) -> float:
    """Floating-point operations of one step, every player's turn, for each sample of the global batch."""
    networks = build_networks(config)
    classifier = build_classifier(config)
    if classifier is not None:
        classifier.requires_grad_(False)
    nets = Networks(
        generator=networks.get(Role.GENERATOR), average=networks[learner_of(config)],
        discriminator=networks.get(Role.DISCRIMINATOR), classifier=networks.get(Role.CLASSIFIER, classifier),
    )
    objective, meta = _objective(config), torch.device("meta")
    batch = Batch(
        torch.empty(_COUNTED_BATCH, *config.data.shape, device=meta),
        torch.empty(_COUNTED_BATCH, dtype=torch.int64, device=meta),
    )
    total = 0
    for role in objective.turns(0):
        draws = KeyedDraws(0, 0, role.value, positions=Positions(0, 1, _COUNTED_BATCH), device=meta)
        loss = loss_of(role, objective)
        total += turn_flops(
            networks, role, lambda loss=loss, draws=draws: loss(nets, batch, draws, 0).total
        )
    return total / _COUNTED_BATCH


def _objective(config: RunConfig):
    return OBJECTIVES[type(config.objective)](config.objective, lambda value: value, torch.device("meta"))
