"""The protocol every plan keeps, and the player it lays over the ranks.

A player is a network with the optimizer that moves it. Objectives and the loop see `Player.network` (a callable) and
the methods below; DDP, FSDP2 and whatever comes later differ behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.schedules import Schedule
from ..core.types import Role
from .optim import OptimizerConfig
from .recompute import Recompute, RecomputeConfig

Weights = Iterable[tuple[str, Tensor]]
"""Full (unsharded) tensors by name, one at a time: initial values, or those of a converted checkpoint."""


@dataclass(frozen=True, kw_only=True)
class FSDP2Config:
    """What is gathered when, and how many copies of the shards there are.

    full: every block for each of its uses, dropped after it; least memory.
    zero2: every block once in a turn, kept through its forwards and backwards, however often they use it; gradients,
        optimizer and average stay sharded.
    whole: the network at once, and kept until its turn ends; fewest collectives, for small networks.
    auto: zero2 for networks that repeat their blocks or are small beside the device's memory, else full
        (`fsdp2.chosen_policy`).
    """

    policy: Literal["auto", "full", "zero2", "whole"] = "auto"
    replicas: int = 1  # copies of all shards (HSDP), each over as many neighbouring ranks: one per node gathers in it

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigError(f"parallel.fsdp2.replicas is {self.replicas}; it must be 1 (every shard once) or more")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the players are laid over the ranks, and in which arithmetic they compute."""

    plan: Literal["ddp", "fsdp2"]
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is a GPU
    precision: Literal["fp32", "tf32", "fp64"] = "fp32"  # tf32: fp32 with TF32 matrix products; fp64: for checks
    deterministic: bool = False  # on a GPU: only kernels that give the same bits every time; the CPU's always do
    timeout_seconds: int = 600  # a collective that waits longer ends the run
    recompute: RecomputeConfig = Recompute()  # in networks that learn
    fsdp2: FSDP2Config = FSDP2Config()

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "fp64" else torch.float32


@dataclass
class Player:
    """A network and what moves it."""

    role: Role
    module: nn.Module  # what is saved; may be sharded
    parameters: tuple[nn.Parameter, ...]  # of the module, as they lie at rest
    network: Callable[..., Tensor]  # what objectives call
    optimizer: torch.optim.Optimizer  # over this rank's shards
    max_grad_norm: float
    learning_rate: Schedule


class ParallelPlan(Protocol):
    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype  # networks' weights and inputs

    def player(self, role: Role, module: nn.Module, weights: Weights, optimizer: OptimizerConfig) -> Player:
        """Lays a module built on the meta device over the ranks, fills it with `weights`, gives it an optimizer."""
        ...

    def frozen(self, module: nn.Module, weights: Weights) -> nn.Module:
        """The same for a network no loss trains (the average, a classifier). Laid out exactly as a player's."""
        ...

    def fill(self, module: nn.Module, weights: Weights) -> None:
        """Gives a laid-out module its values: every parameter and persistent buffer, of the right shapes."""
        ...

    def moving(self, player: Player, *, last: bool) -> AbstractContextManager[None]:
        """For one microbatch, forward and backward: only this player's parameters require grad.

        With the `last` microbatch of a turn its accumulated gradients become their mean over the ranks.
        """
        ...

    def backward(self, player: Player, loss: Tensor) -> None:
        """Accumulates this microbatch's gradients."""
        ...

    def step(self, player: Player, step: int) -> Tensor:
        """Clips, moves by the learning rate of `step`, clears the gradients. Returns the norm before clipping, []."""
        ...

    def mean_(self, value: Tensor) -> Tensor:
        """The mean of a small plain tensor over the data-parallel ranks, in place and returned."""
        ...

    def shards(self, module: nn.Module) -> dict[str, Tensor]:
        """This rank's part of every parameter and persistent buffer, by name; plain tensors that share storage."""
        ...

    def rest(self, module: nn.Module) -> None:
        """Before weights are read, written or set to learn: drops gathered copies, which a forward would go on using.

        `step`, `moving`, `shards`, `tensors`, `optimizer_tensors` and `fill` do so by themselves; shards that were
        asked for earlier and are written to now need it.
        """
        ...

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Every parameter and buffer by its unsharded name, as a checkpoint stores it (DTensor if sharded)."""
        ...

    def optimizer_tensors(self, player: Player) -> dict[str, Tensor]:
        """The optimizer's state as '<parameter>.<state>' -> tensor, complete from the first step on."""
        ...
