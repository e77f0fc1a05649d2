"""How many samples a second a training step takes from its data source, on one GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ..core.conditions import Conditions, ConditionShape
from ..core.errors import ConfigError
from ..core.random import Draws, KeyedDraws, Positions
from ..core.types import Batch, Loss, Networks, Role, Turn, networks_of
from .devices import GPUS
from .flops import CountedNetwork, FlopCounter, count_turn

_COUNTED_BATCH = 8  # samples; penalties on a share of a quarter come out whole


class Counted(Protocol):
    """What is asked of an objective whose step is counted."""

    def turns(self, step: int) -> tuple[Turn, ...]: ...

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss: ...


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
    name: str, *, turns: int, global_batch: int, count: Callable[[], float], step_seconds: float | None, gpu: str,
    utilisation: float,
) -> Demand:
    """The demand of a recipe of that name. Raises ConfigError for a GPU that is not known or impossible figures.

    Args:
        count: gives the operations of a step for each sample of the global batch; called if no seconds are given.
    """
    flops = None
    if step_seconds is None:
        if gpu not in GPUS:
            raise ConfigError(f"the peak of a '{gpu}' is not known; known are {', '.join(GPUS)}; "
                              "choose one with --gpu, or give --step-seconds")
        if not 0 < utilisation <= 1:
            raise ConfigError(f"--utilisation {utilisation} is a share of the peak: more than 0, at most 1")
        flops, peak = count(), GPUS[gpu].tflops
        step_seconds = global_batch * flops / (peak * 1e12 * utilisation)
        how = (
            f"estimated: {flops / 1e12:.3g} TFLOP a sample (counted: forward and backward of all turns) at "
            f"{utilisation:.0%} of the {peak} TFLOP/s of dense bf16 that one {gpu} has by its data sheet"
        )
    elif step_seconds <= 0:
        raise ConfigError(f"--step-seconds {step_seconds} must be more than 0")
    else:
        how = "from the seconds given for a step of one GPU"
    return Demand(
        recipe=name, turns=turns, global_batch=global_batch, tflop_per_sample=None if flops is None else flops / 1e12,
        step_seconds=step_seconds, images_per_second=turns * global_batch / step_seconds, how=how,
    )


def step_flops_per_sample(
    players: Mapping[Role, nn.Module], averages: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module],
    objective: Counted, shape: tuple[int, int, int], step: int = 0, *, prompts: ConditionShape | None = None,
) -> dict[tuple[str, str], float]:
    """Floating-point operations of step number `step` for each sample of the global batch, by turn and part of it.

    A turn is named by who moves in it, a part as `count_turn` says. All networks, and what the objective holds, are on
    the meta device; `shape` is that of a sample, `prompts` of what it is told beside a class.
    """
    for network in (*averages.values(), *frozen.values()):
        network.requires_grad_(False)
    meta = torch.device("meta")
    batch = Batch(
        torch.empty(_COUNTED_BATCH, *shape, device=meta), torch.empty(_COUNTED_BATCH, dtype=torch.int64, device=meta),
        None if prompts is None else _prompts(prompts, meta),
    )
    found: dict[tuple[str, str], float] = {}
    for turn in objective.turns(step):
        counter, movers = FlopCounter(), "+".join(role.value for role in turn)
        nets = networks_of(
            {role: CountedNetwork(network, role.value, counter) for role, network in players.items()},
            {name: CountedNetwork(network, name, counter) for name, network in averages.items()},
            {name: CountedNetwork(network, name, counter) for name, network in frozen.items()},
        ).given(batch.conditions)
        draws = KeyedDraws(0, step, movers, positions=Positions(0, 1, _COUNTED_BATCH), device=meta)
        count_turn(counter, players, turn, lambda role, nets=nets, draws=draws: objective.loss(
            role, nets, batch, draws, step
        ).total)
        for part, number in counter.parts.items():
            found[movers, part] = found.get((movers, part), 0.0) + number / _COUNTED_BATCH
    return found


def _prompts(shape: ConditionShape, device: torch.device) -> Conditions:
    count = _COUNTED_BATCH + 1
    return Conditions(
        torch.empty(count, shape.length, shape.width, device=device),
        torch.empty(count, shape.length, dtype=torch.bool, device=device),
        torch.empty(count, shape.pooled, device=device),
    )
