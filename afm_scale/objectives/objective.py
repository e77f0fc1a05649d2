"""The protocol of objectives, what their configurations answer for them, and the base of games of one.

An objective is one file: a configuration that says what it needs, a class with a loss, and one line in `table.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from ..core.arithmetic import Precision
from ..core.random import Draws
from ..core.schedules import AverageConfig
from ..core.types import Batch, Loss, Networks, Reduce, Role, Turn
from ..flow.path import Prediction
from .described import Described

T = TypeVar("T")


class Objective(Protocol):
    """An objective's losses never call backward, never log, never count steps."""

    learner: Role  # the player that the run is for: it is averaged, its updates are the steps
    prediction: Prediction | None  # what the generator's output means, the sampler moves with it; None: trains none
    config: ObjectiveConfig  # read anew in every turn: another may be set between two steps, of the same kind

    def turns(self, step: int) -> tuple[Turn, ...]:
        """The turns of this step, in order; each gets fresh data. AFM: discriminator, then generator; or both at once.
        """
        ...

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """A first look at each microbatch, only when several share a turn, for statistics of the whole batch.

        Of one player's, before its losses and after those of the players before it in the turn.
        """
        ...

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """The loss of a player whose turn it is, on one microbatch.

        Where several move at once, the backwards of those before it in the turn have run, on all microbatches; none has
        stepped, and what they all compute may carry a graph of all their weights.
        """
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Tensors a resumed run needs, always the same ones; loading fills them in place."""
        ...


@dataclass(frozen=True, kw_only=True)
class FrozenNetwork:
    """A network of an objective's own that does not learn: the average of another run, on data of the same kind."""

    weights: Path  # a run's folder or one of its checkpoints
    role: Role = Role.GENERATOR  # what that run trained
    objective: str | None = None  # the kind of objective that it was trained by; None: any
    hides_classes: bool = False  # whether samples without a class must have been among those it saw


class ObjectiveConfig(Protocol):
    """What an objective says of itself before anything is built. Nobody else knows objectives by their names."""

    kind: str

    @property
    def prediction(self) -> Prediction | None:
        """As of `Objective`."""
        ...

    @property
    def roles(self) -> tuple[Role, ...]:
        """Who learns; the first is whom the run is for. Each is described under `model` and `optimizer`."""
        ...

    @property
    def guides(self) -> tuple[str, ...]:
        """Which of the frozen networks under `model` it asks: "classifier", "flow"."""
        ...

    @property
    def frozen(self) -> Mapping[str, FrozenNetwork]:
        """Frozen networks of its own, by the names under which `Networks.frozen` has them beside the guides."""
        ...

    @property
    def averages(self) -> Mapping[str, AverageConfig]:
        """Averages of the learner beside the published one, by the names under which `Networks.averages` has them."""
        ...

    @property
    def differentiates_forward(self) -> bool:
        """Whether it needs derivatives in forward mode (flow/derivative.py), which not every plan has."""
        ...

    @property
    def without_forward_derivative(self) -> str:
        """What to set so that it needs none, as "set a.b=c"; empty if nothing does."""
        ...

    @property
    def hides_classes(self) -> bool:
        """Whether some samples are shown without their class, so that the network knows samples of any class too."""
        ...

    @property
    def image_free(self) -> bool:
        """Whether it asks for no images: x of its batches is not looked at, and may be of data that have none."""
        ...

    def check(self, described: Described) -> None:
        """Raises ConfigError for a recipe that it cannot train: times, a class that is hidden, the batch ..."""
        ...

    def resolved(self: T, precision: Precision) -> T:
        """The same with what it leaves open decided by `parallel.precision`."""
        ...

    def over(self: T, steps: int) -> T:
        """The same with what it says in shares of the run said in steps: `loop.steps` of them."""
        ...


class GameOfOneConfig:
    """The answers of an objective that trains one generator and needs nothing else; subclasses say what differs."""

    roles: ClassVar[tuple[Role, ...]] = (Role.GENERATOR,)
    guides: ClassVar[tuple[str, ...]] = ()
    differentiates_forward: ClassVar[bool] = False
    without_forward_derivative: ClassVar[str] = ""
    image_free: ClassVar[bool] = False

    @property
    def hides_classes(self) -> bool:
        return False

    @property
    def frozen(self) -> Mapping[str, FrozenNetwork]:
        return {}

    @property
    def averages(self) -> Mapping[str, AverageConfig]:
        return {}

    def check(self, described: Described) -> None:
        """Nothing is wanted of the rest of the recipe."""

    def resolved(self: T, precision: Precision) -> T:
        return self

    def over(self: T, steps: int) -> T:
        return self


class GameOfOne:
    """The base of objectives with one player: a subclass is its loss."""

    def __init__(self, config: ObjectiveConfig, mean_over_ranks: Reduce, device: torch.device) -> None:
        (self.learner,) = config.roles
        self.prediction = config.prediction
        self.config = config

    def turns(self, step: int) -> tuple[Turn, ...]:
        return ((self.learner,),)

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """Nothing here depends on the whole batch."""

    def state_dict(self) -> Mapping[str, Tensor]:
        return {}
