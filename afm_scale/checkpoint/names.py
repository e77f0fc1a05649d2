"""The names of a checkpoint's tensors. Nobody else spells them.

    average.NAME                      the published average of the learner's weights, by their names in the network
    averages.WHICH.NAME               another average that an objective keeps
    ROLE.NAME                         a player's weights: generator, discriminator, classifier
    optimizer.ROLE.NAME.STATE         the optimizer's state of a weight: step, exp_avg, exp_avg_sq, past_grad
    objective.NAME                    what the objective keeps
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..core.types import PUBLISHED, Role

T = TypeVar("T")

AVERAGE = "average."
OBJECTIVE = "objective."
# What an optimizer may keep or not: a checkpoint's may be left where nothing would read it, with beta1 = 0, or without
# optimism.
SPARE = (".exp_avg", ".past_grad")


def of_average(which: str = PUBLISHED) -> str:
    """The prefix of an average's weights."""
    return AVERAGE if which == PUBLISHED else f"averages.{which}."


def of_role(role: Role) -> str:
    """The prefix of a player's weights."""
    return f"{role.value}."


def of_optimizer(role: Role) -> str:
    """The prefix of the state of a player's optimizer."""
    return f"optimizer.{role.value}."


def with_prefix(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """Those whose names begin with the prefix, without it; the inverse of `with_prefix`."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def group_of(name: str) -> str:
    """Whose a tensor is: 'generator', 'average', 'averages.target', 'optimizer.generator', 'objective'."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("optimizer", "averages") else 1])
