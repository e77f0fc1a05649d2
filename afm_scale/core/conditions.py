"""What a network is told beyond a class: embedded prompts, and how labels stand for them.

A batch with conditions has them as a table, and its labels y [B] are rows of it. The last row is the empty prompt, so
that NO_CLASS, which is -1, picks it: hiding a prompt is hiding a class, and a part of a batch is a part of its labels.
Objectives, samplers and plans handle labels alone; a network that is `given` the table finds rows where labels were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ConditionShape(NamedTuple):
    """Of one prompt."""

    length: int  # L tokens, those that pad it included
    width: int  # D numbers for each token
    pooled: int = 0  # P numbers for all of it; 0 where its encoder gives none


class Conditions(NamedTuple):
    """Embedded prompts, R of them."""

    embeddings: Tensor  # [R, L, D] float32 or bf16
    mask: Tensor  # [R, L] bool, false where a prompt is padded
    pooled: Tensor  # [R, P] of the same dtype

    @property
    def shape(self) -> ConditionShape:
        return ConditionShape(self.embeddings.shape[1], self.embeddings.shape[2], self.pooled.shape[1])

    def rows(self, y: Tensor) -> Conditions:
        """Those of labels y [B] int64, -1 being the last row: B of them."""
        return Conditions(self.embeddings[y], self.mask[y], self.pooled[y])

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Conditions:
        """The same elsewhere, or in another dtype; the mask stays bool."""
        return Conditions(self.embeddings.to(device, dtype), self.mask.to(device), self.pooled.to(device, dtype))


Told = Tensor | Conditions
"""What a network is told of its samples: labels [B] int64, or as many rows of conditions, of the dtype of its samples.
"""


class Given:
    """A network, called with labels, that is told the rows of a table that they stand for.

    `place`: which of the network's inputs the labels are. The samples are the first, whose dtype the rows are cast to.
    """

    def __init__(self, network: Callable[..., Tensor], table: Conditions, place: int) -> None:
        self.network = network
        self.table = table
        self._place = place

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        before, y, after = inputs[: self._place], inputs[self._place], inputs[self._place + 1 :]
        return self.network(*before, self.table.rows(y).to(dtype=inputs[0].dtype), *after, **options)


def given(network: Callable[..., Tensor], table: Conditions | None, place: int = 3) -> Callable[..., Tensor]:
    """The network itself where there is no table. A generator's labels are in place 3, a discriminator's in 2."""
    return network if table is None else Given(network, table, place)
