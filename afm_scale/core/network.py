"""What a network owes the plans that lay it over ranks, and how the work of its blocks may be shared.

Sharing follows Megatron-LM (arXiv 1909.08053): what every rank is given is the same; a column parallel layer gives each
rank some of its outputs, a row parallel one takes these as some of its inputs, and the ranks' results are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Network(Protocol):
    """A network that plans can lay over ranks: a module with these members beside nn.Module's own.

    Python has no type for "a module that also", so a function that takes a Network may use both. Its blocks are
    `Block`s where there are any, and every module inside of it that owns tensors is a `TensorOwner`.
    """

    repetitions: int
    """How often one forward uses each block: a plan that gathers blocks chooses by it how long they stay gathered."""

    passes: tuple[str, ...]
    """Names of the methods that are one pass through all blocks: the pieces that recompute's `per_repetition` keeps the
    input of. They take and return tensors (other arguments are constants); empty where there are no blocks."""

    def shardable_blocks(self) -> list[nn.Module]:
        """The modules that take the work, in forward order: sharded, recomputed, compiled and lowered one by one.

        They hold no parameter together and are alike, so that one compilation serves all. Empty for a small network,
        which is then laid out as one piece and cannot be lowered, recomputed or shared.
        """
        ...

    def large_linears(self) -> list[nn.Linear]:
        """The layers of the blocks that do nearly all of the work, and whose products may be in fp8."""
        ...

    def compute_blocks_in(self, dtype: torch.dtype) -> None:
        """From now on the blocks' inputs are cast to `dtype`, and what leaves the last one back; weights stay.

        The network does so itself, as it alone knows which calls have to be precise.
        """
        ...


def learning(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a network was built to learn, by name; the others never move: those of a pretrained base.

    Asked before a plan lays the network out, which takes gradients away and gives them back.
    """
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


class TensorOwner(Protocol):
    """A module that owns parameters or buffers directly, and knows how they start.

    Networks are built on the meta device, and may be too large for one rank: so values are asked for one by one.
    """

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        """The starting value of its tensor `name`: whole, float32, on the CPU, a function of the generator alone."""
        ...


Entry = Callable[[Tensor], Tensor]
"""The identity, whose backward sums the gradient over the ranks that share: each has only its part of it."""


class Shared(NamedTuple):
    """A module inside of a block, and what becomes of it.

    column: a linear layer; each rank computes some of its outputs, given by the rows of its weight (Megatron names it
        by the columns of the transpose).
    row: a linear layer; each rank takes some of its inputs, the columns of its weight, and the results are summed.
    partial: stays as it is, but is given only the rank's part: the gradients of its parameters have to be summed.
    """

    owner: nn.Module
    name: str  # in the owner
    kind: Literal["column", "row", "partial"]
    stacked: int = 1  # outputs that the layer stacks, each of them shared alike: 3 for query, key and value


class Block(Protocol):
    """A block whose work several ranks can share: what tensor parallelism asks of it, and nobody else."""

    def share(self, parts: int, entry: Entry) -> list[Shared]:
        """Makes this one of `parts`, and says which modules the plan has to replace; those not listed stay whole.

        `entry` is for what the block computes with a sliced weight outside of the replaced layers. Raises ConfigError
        if the work cannot be divided so.
        """
        ...
