"""The protocol every plan keeps, and the player it lays over the ranks.

A player is a network with the optimizer that moves it. Objectives and the loop see `Player.network` (a callable) and
the methods below; the plans differ behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.network import Network
from ..core.place import Place
from ..core.schedules import Schedule
from ..core.types import Role
from .optim import OptimizerConfig

Admits = Callable[[Tensor], bool]
"""Whether an update is made, by the norm of its gradient [] before clipping; the same on every rank. Collective."""

Weights = Iterable[tuple[str, Tensor]]
"""Full (unsharded) tensors by name, one at a time: initial values, or those of a converted checkpoint."""


@dataclass
class Player:
    """A network and what moves it."""

    role: Role
    module: nn.Module  # what is saved; may be sharded
    parameters: tuple[nn.Parameter, ...]  # those of the module that learn, as they lie at rest
    names: tuple[str, ...]  # theirs, in the module
    network: Callable[..., Tensor]  # what objectives call
    optimizer: torch.optim.Optimizer  # over this rank's shards
    max_grad_norm: float
    learning_rate: Schedule

    @cached_property
    def still(self) -> frozenset[str]:
        """Names of the module's parameters that never move: they end as they began."""
        return frozenset(name for name, _ in self.module.named_parameters()).difference(self.names)

    def moving(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by their names in the module, without those of `still`."""
        return {name: value for name, value in tensors.items() if name not in self.still}


class ParallelPlan(Protocol):
    rank: int
    world_size: int
    data_rank: int  # which share of the global batch this rank sees
    num_data_ranks: int  # of how many shares; less than the ranks where some see the same samples (tensor parallelism)
    device: torch.device
    dtype: torch.dtype  # networks' weights and inputs

    @property
    def place(self) -> Place:
        """This process among the ranks; those of its group share every network's work."""
        ...

    def player(self, role: Role, module: Network, weights: Weights, optimizer: OptimizerConfig) -> Player:
        """Lays a module built on the meta device over the ranks, gives it `weights` and an optimizer."""
        ...

    def frozen(self, module: Network, weights: Weights) -> nn.Module:
        """Lays out a network that no loss trains (the average, a classifier), exactly as that of a player."""
        ...

    def initialise(self, module: nn.Module, weights: Weights, still: Collection[str] = ()) -> None:
        """Gives a laid-out module its values: every parameter and persistent buffer, of the right shapes.

        Those named in `still` keep what they have.
        """
        ...

    def turn_of(
        self, player: Player, *, last: bool, beside: Sequence[Player] = ()
    ) -> AbstractContextManager[None]:
        """For one microbatch, forward and backward: only this player's parameters require grad, and those of others
        `beside` it, who move in the same turn. Between them nothing is dropped that a plan gathers for a whole turn.

        With the `last` microbatch of a player its accumulated gradients become their mean over the ranks.
        """
        ...

    def backward(self, player: Player, loss: Tensor) -> None:
        """Accumulates this microbatch's gradients."""
        ...

    def step(self, player: Player, step: int, admits: Admits | None = None) -> Tensor:
        """Clips, moves by the learning rate of `step`, clears the gradients. Returns the norm before clipping, [].

        Where `admits`, which is asked once, says no, weights and the optimizer's state stay as they were.
        """
        ...

    def describe(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        """Says what is open in the configuration, decided (`describe.describe`), for networks that learn, by name."""
        ...

    def mean_(self, value: Tensor) -> Tensor:
        """The mean of a small plain tensor over all ranks, in place and returned. Ranks that see the same samples hold
        the same values, so it is that over the shares of the batch too."""
        ...

    def local_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """This rank's part of every parameter and persistent buffer, by name; plain tensors that share storage."""
        ...

    def reshard(self, module: nn.Module) -> None:
        """Drops gathered copies, which a forward would go on using: before weights are read, written or set to learn.

        `step`, `turn_of`, `local_tensors`, `state_dict`, `optimizer_state_dict` and `initialise` do so by themselves;
        local tensors that were asked for earlier and are written to now need it.
        """
        ...

    def state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """Every parameter and buffer by its unsharded name, as a checkpoint stores it (DTensor if sharded).

        They share storage with the module, or are gathered copies: what is written into them counts after
        `load_state_dict`.
        """
        ...

    def load_state_dict(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Makes the values of `state_dict(module)`, into which a checkpoint was loaded, those of the module.

        Collective. Does nothing where they share storage.
        """
        ...

    def optimizer_state_dict(self, player: Player) -> dict[str, Tensor]:
        """The optimizer's state as '<parameter>.<state>' -> tensor, complete from the first step on."""
        ...

    def load_optimizer_state_dict(self, player: Player, tensors: Mapping[str, Tensor]) -> None:
        """Does as `load_state_dict`, for the tensors of `optimizer_state_dict(player)`."""
        ...
