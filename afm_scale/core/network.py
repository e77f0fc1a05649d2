"""How the work of a block may be shared by several ranks (tensor parallelism): what a network tells a plan.

Following Megatron-LM (arXiv 1909.08053): what every rank is given is the same; a first layer gives each rank some of
its outputs, a second one takes these as some of its inputs, and the ranks' results are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor, nn

Entry = Callable[[Tensor], Tensor]
"""The identity, whose backward sums the gradient over the ranks that share: each has only its part of it."""


class Shared(NamedTuple):
    """A module inside of a block, and what becomes of it.

    column: a linear layer; each rank computes some of its outputs, given by the rows of its weight (Megatron's column
        parallel layer: it thinks of the weight as transposed).
    row: a linear layer; each rank takes some of its inputs, the columns of its weight, and the results are summed.
    partial: stays as it is, but is given only the rank's part: the gradients of its parameters have to be summed.
    """

    owner: nn.Module
    name: str  # in the owner
    kind: Literal["column", "row", "partial"]
    stacked: int = 1  # outputs that the layer stacks, each of them shared alike: 3 for query, key and value
