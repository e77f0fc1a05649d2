"""The protocol every objective keeps. An objective of one player has only generator turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ..core.random import Draws
from ..core.types import Batch, Loss, Networks, Role
from ..flow.path import Prediction


class Objective(Protocol):
    """Losses never call backward, never log, never count steps."""

    prediction: Prediction  # what the generator's output means; the sampler moves with it

    def turns(self, step: int) -> tuple[Role, ...]:
        """Who moves in this step, in order; each turn gets fresh data. AFM: discriminator, then generator."""
        ...

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """A first look at each microbatch of a turn, only when several share one, for statistics of the whole batch."""
        ...

    def generator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """The generator's loss on one microbatch."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Tensors a resumed run needs, always the same ones; loading fills them in place."""
        ...


class AdversarialObjective(Objective, Protocol):
    """An objective whose turns include the discriminator's."""

    def discriminator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        """The discriminator's loss on one microbatch."""
        ...
