"""The protocols of objectives: what the loop asks of each, and what more of those that train a generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ..core.random import Draws
from ..core.types import Batch, Loss, Networks, Role
from ..flow.path import Prediction


class Objective(Protocol):
    """Losses never call backward, never log, never count steps."""

    learner: Role  # the player that the run is for: it is averaged, its updates are the steps

    def turns(self, step: int) -> tuple[Role, ...]:
        """Who moves in this step, in order; each turn gets fresh data. AFM: discriminator, then generator."""
        ...

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """A first look at each microbatch of a turn, only when several share one, for statistics of the whole batch."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Tensors a resumed run needs, always the same ones; loading fills them in place."""
        ...


class GenerativeObjective(Objective, Protocol):
    """An objective that trains a generator; its learner is that."""

    prediction: Prediction  # what the generator's output means; the sampler moves with it

    def generator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """The generator's loss on one microbatch."""
        ...


class ClassifierObjective(Objective, Protocol):
    """An objective that trains a classifier."""

    def classifier_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """The classifier's loss on one microbatch."""
        ...


class AdversarialObjective(GenerativeObjective, Protocol):
    """An objective whose turns include the discriminator's."""

    def discriminator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """The discriminator's loss on one microbatch."""
        ...
