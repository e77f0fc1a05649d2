"""The values that travel between packages: a batch, a loss, the networks of a game.

Times follow one convention everywhere (stated in `flow/path.py`): t = 0 is data, t = 1 is noise,
both source time s and target time t are [B] float32 with 0 <= t <= s <= 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from .conditions import Conditions, Told, given


class Role(str, Enum):
    """Who moves in a turn."""

    GENERATOR = "generator"
    DISCRIMINATOR = "discriminator"
    CLASSIFIER = "classifier"


Turn = tuple[Role, ...]
"""Who moves at once: on the same samples, each by a loss of its own, which are taken in this order; then all step."""


NO_CLASS = -1
"""The label of a sample whose class is not told; for generators that were trained with some."""


def without_class(y: Tensor, where: Tensor | None = None) -> Tensor:
    """Labels y [B] with the class hidden where `where` [B] is true; everywhere if there is none."""
    return torch.full_like(y, NO_CLASS) if where is None else y.masked_fill(where, NO_CLASS)


@dataclass(frozen=True, slots=True)
class Batch:
    """Clean samples of this rank's share of a (micro)batch."""

    x: Tensor  # [B, C, H, W] latents or pixels, on the training device
    y: Tensor  # [B] int64 class labels; rows of `conditions` where there are some
    conditions: Conditions | None = None  # prompts, the last one empty; of all microbatches, on the training device

    def __len__(self) -> int:
        return len(self.x)

    def every(self, start: int, stride: int) -> Batch:
        """Samples start, start + stride, ...: microbatch `start` of `stride`."""
        return replace(self, x=self.x[start::stride], y=self.y[start::stride])


@dataclass(frozen=True, slots=True)
class Loss:
    """What an objective returns for one microbatch.

    `total` is the mean over this microbatch and carries the graph; `terms` are detached scalars for the logs.
    Terms that are part of the total are reported with their weights, so that they add up to it.
    """

    total: Tensor  # []
    terms: Mapping[str, Tensor]  # name -> []


class Generator(Protocol):
    """u(x_s [B, C, H, W], s [B], t [B], y [B]) -> [B, C, H, W]; what the output means is `flow.path.Prediction`.

    Who calls it has labels; the network itself is told rows of conditions where the batch has some.
    """

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, y: Told) -> Tensor: ...


class Discriminator(Protocol):
    """D(x_t [B, C, H, W], t [B], y [B]) -> logits [B]; `precise`: in float32 where D computes in less otherwise.

    With `order` [B, H, W] it looks at a share of its tokens alone, those with the least numbers at their first pixel.
    """

    def __call__(
        self, x: Tensor, t: Tensor, y: Told, precise: bool = False, order: Tensor | None = None, share: float = 1.0
    ) -> Tensor: ...


class Classifier(Protocol):
    """C(x_t [B, C, H, W], t [B]) -> class logits [B, num_classes]."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks an objective may call, already laid over the ranks. Which of them learns is the loop's affair."""

    generator: Generator | None  # None only where a classifier is trained
    average: Generator | Classifier  # of the network that the run is for: the one that is published
    discriminator: Discriminator | None = None
    classifier: Classifier | None = None  # the one that is trained, or the frozen one
    averages: Mapping[str, Generator | Classifier] = field(default_factory=dict)  # all, by name
    frozen: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)  # "classifier", "flow": guides; others

    def given(self, table: Conditions | None) -> Networks:
        """The same, told the rows of a batch's conditions in the place of labels; itself where a batch has none.

        Classifiers are told nothing of their samples. None is trained on prompts.
        """
        if table is None:
            return self
        frozen = {name: network if network is self.classifier else given(network, table)
                  for name, network in self.frozen.items()}
        return replace(
            self, generator=self.generator and given(self.generator, table), average=given(self.average, table),
            discriminator=self.discriminator and given(self.discriminator, table, 2),
            averages={name: given(network, table) for name, network in self.averages.items()}, frozen=frozen,
        )


PUBLISHED = "average"
"""The name of the average that is sampled, evaluated and published; an objective may keep others beside it."""


def networks_of(
    players: Mapping[Role, Callable[..., Tensor]], averages: Mapping[str, Callable[..., Tensor]],
    frozen: Mapping[str, Callable[..., Tensor]],
) -> Networks:
    """Puts together what an objective may call; the only place that does."""
    return Networks(
        generator=players.get(Role.GENERATOR), average=averages[PUBLISHED],
        discriminator=players.get(Role.DISCRIMINATOR),
        classifier=players.get(Role.CLASSIFIER, frozen.get("classifier")), averages=averages, frozen=frozen,
    )


Reduce = Callable[[Tensor], Tensor]
"""Mean of a tensor over the data-parallel ranks, in place and returned; the identity on one rank."""
