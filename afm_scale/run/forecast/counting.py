"""The estimates of a recipe: what they need is built on the meta device, where nothing is computed."""

from __future__ import annotations

from functools import cache

import torch

from ...core.types import PUBLISHED, Role
from ...estimate.demand import Demand, demand, step_flops_per_sample
from ...estimate.flops import FlopCounter
from ...objectives.objective import Objective, ObjectiveConfig
from ...objectives.table import OBJECTIVES
from ..config import RunConfig
from ..guides import frozen_modules
from ..networks import build_learner, build_networks, build_objective, learner_of

META = torch.device("meta")
_PARTS = 32


def step_flops(config: RunConfig, step: int = 0) -> float:
    """Floating-point operations of training step number `step` for each sample of its global batch.

    Raises ConfigError if a frozen network is described by another run that is not there.
    """
    return sum(step_parts(config, step).values())


def step_flops_in_force(config: RunConfig, objective: ObjectiveConfig, step: int) -> float:
    """The same of an objective as it is in force in a run, which leaves nothing open any more."""
    return sum(_parts(config, OBJECTIVES[type(objective)](objective, lambda value: value, META), step).values())


def step_parts(config: RunConfig, step: int = 0) -> dict[tuple[str, str], float]:
    """The same by turn and part of it: see `estimate/flops.py`. The parts of R1 and R2 in turn: of an even update."""
    return _parts(config, build_objective(config, lambda value: value, META), step)


def _parts(config: RunConfig, objective: Objective, step: int) -> dict[tuple[str, str], float]:
    averages = {name: build_learner(config) for name in (PUBLISHED, *config.objective.averages)}
    return step_flops_per_sample(
        build_networks(config), averages, frozen_modules(config), objective, config.data.shape, step,
        prompts=config.data.prompt_shape,
    )


def mean_step_flops(config: RunConfig, begin: int, end: int) -> float:
    """The mean of `step_flops` over steps begin ... end - 1: what an objective asks may change in a run.

    Counted at the ends and in the middle; between two that differ in the middle again, until a change is placed to a
    part of `_PARTS`.
    """
    counted = cache(lambda step: step_flops(config, step))

    def total(first: int, last: int) -> float:
        """Of the steps first ... last - 1; their ends stand for those between, if they agree or are near."""
        left, right, steps = counted(first), counted(min(last, end - 1)), last - first
        middle = (first + last) // 2
        is_whole = (first, last) == (begin, end)
        if steps < 2 or not is_whole and (left == right or steps <= (end - begin) / _PARTS):
            return steps * (left + right) / 2
        return total(first, middle) + total(middle, last)

    return total(begin, end) / (end - begin)


def learner_flops(config: RunConfig) -> float:
    """Operations of one forward of the network that the run is for, of one sample and without a graph."""
    network, counter = build_learner(config), FlopCounter()
    x, time = torch.empty(1, *config.data.shape, device=META), torch.empty(1, device=META)
    inputs = (x, time) if learner_of(config) is Role.CLASSIFIER else (x, time, time, time.long())
    with torch.no_grad(), counter:
        network(*inputs)
    return float(counter.total)


def demand_of(config: RunConfig, name: str, *, step_seconds: float | None, gpu: str, utilisation: float) -> Demand:
    """What the recipe asks of its data source. Raises ConfigError for a GPU that is not known or impossible figures."""
    turns = build_objective(config, lambda value: value, META).turns(0)
    return demand(
        name, turns=len(turns), global_batch=config.data.global_batch, count=lambda: step_flops(config),
        step_seconds=step_seconds, gpu=gpu, utilisation=utilisation,
    )
