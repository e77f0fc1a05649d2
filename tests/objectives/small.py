"""Objectives on small float64 problems: batches, draws, and networks simple enough for closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from afm_scale.core.random import KeyedDraws, Positions, tensor_generator
from afm_scale.core.schedules import Constant
from afm_scale.core.types import Batch, Networks, Role, networks_of
from afm_scale.flow.path import Prediction
from afm_scale.flow.times import GridTimes
from afm_scale.objectives.afm import AdversarialFlow, AFMConfig, PenaltyConfig

SHAPE = (2, 3, 4)
NUM_CLASSES = 3
CPU = torch.device("cpu")


def normal(*shape: int, name: str = "tensor") -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=tensor_generator(name, shape))


def batch_of(count: int) -> Batch:
    return Batch(normal(count, *SHAPE, name="data"), torch.arange(count) % NUM_CLASSES)


def draws_of(count: int, step: int = 0, role: str = "generator") -> KeyedDraws:
    return KeyedDraws(0, step, role, positions=Positions(0, 1, count))


def parts_of(
    batch: Batch, world_size: int, accumulation: int, step: int = 0, role: str = "generator"
) -> list[list[tuple[Batch, KeyedDraws]]]:
    """The global batch as the loop gives it out: for each rank its microbatches with their draws."""
    ranks = []
    for rank in range(world_size):
        mine = batch.every(rank, world_size)
        positions = Positions(rank, world_size, len(mine.y))
        micros = range(accumulation)
        draws = [KeyedDraws(0, step, role, positions=positions.every(micro, accumulation)) for micro in micros]
        ranks.append([(mine.every(micro, accumulation), draws[micro]) for micro in micros])
    return ranks


def config_of(**changes: Any) -> AFMConfig:
    """One-step x-prediction with transport weight 0.2 and no penalty unless told otherwise."""
    settings = {
        "prediction": Prediction.X, "times": GridTimes(steps=1), "transport_weight": Constant(value=0.2),
        "penalty": PenaltyConfig(weight=0.0),
    }
    return AFMConfig(**{**settings, **changes})


def game(reduce: Callable[[Tensor], Tensor] = lambda value: value, **changes: Any) -> AdversarialFlow:
    return AdversarialFlow(config_of(**changes), reduce, CPU)


class SmallGenerator(nn.Module):
    """Smooth in everything it is given."""

    def __init__(self) -> None:
        super().__init__()
        size = normal(*SHAPE).numel()
        self.mix = nn.Parameter(normal(size, size, name="mix") / 5)
        self.labels = nn.Parameter(normal(NUM_CLASSES, size, name="labels") / 5)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        hidden = x.flatten(1) @ self.mix + self.labels[y] + (s + 2 * t).to(x.dtype)[:, None]
        return torch.tanh(hidden).view_as(x)


class SmallDiscriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        size = normal(*SHAPE).numel()
        self.mix = nn.Parameter(normal(size, 8, name="d mix") / 2)
        self.head = nn.Parameter(normal(8, name="d head"))
        self.labels = nn.Parameter(normal(NUM_CLASSES, 8, name="d labels"))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        hidden = x.flatten(1) @ self.mix + self.labels[y] + t.to(x.dtype)[:, None]
        return torch.tanh(hidden) @ self.head


def linear_classifier(x: Tensor, t: Tensor) -> Tensor:
    return x.flatten(1) @ normal(x[0].numel(), NUM_CLASSES, name="classifier") + t.to(x.dtype)[:, None]


def networks(
    generator: Callable[..., Tensor] | None = None, discriminator: Callable[..., Tensor] | None = None
) -> Networks:
    generator = generator or SmallGenerator()
    players = {Role.GENERATOR: generator, Role.DISCRIMINATOR: discriminator or SmallDiscriminator()}
    return networks_of(players, {"average": generator}, {"classifier": linear_classifier})


def mean_logit(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A discriminator whose logit is the mean of the sample."""
    return x.flatten(1).mean(1)


def constant_output(values: Tensor) -> Callable[..., Tensor]:
    """A generator that returns samples of one constant each."""
    return lambda x, s, t, y: values.view(-1, 1, 1, 1).expand_as(x)


def scale_of(objective: AdversarialFlow) -> Tensor:
    return objective.state_dict()["gradient_scale.square_avg"]
