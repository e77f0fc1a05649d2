"""What a kind of plan says of itself before it is built: the protocol between recipes and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...core.network import Network

if TYPE_CHECKING:  # they are made of the table of kinds, which is made of this
    from ..config import ParallelConfig
    from ..launch import Ranks
    from ..plan import ParallelPlan


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one rank does in a turn: `accumulation` microbatches of so many samples."""

    microbatch: int = 1
    accumulation: int = 1


ONE_MICROBATCH = Turn()


@dataclass(frozen=True)
class DescribedNetwork:
    """A network as a recipe describes it, as far as plans have demands on it."""

    setting: str  # 'model.generator'
    kind: str
    hidden_size: int | None = None  # of its blocks; None: it has none
    num_heads: int | None = None
    can_be_shared: bool = True  # its blocks, by several ranks

    @property
    def has_blocks(self) -> bool:
        return self.hidden_size is not None


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a recipe says beside a plan's own settings, as far as plans have demands on it."""

    networks: Sequence[DescribedNetwork]
    compile_guides: bool | None  # model.compile_guides


@dataclass(frozen=True, kw_only=True)
class PlanKind:
    """A plan's own settings, `parallel.<kind>` in a recipe, and what can be said before it is built.

    A new kind subclasses it as a frozen dataclass, whose fields are its settings, all with defaults, and gets a line in
    `parallel/table.py`. What needs an optional package belongs into the module that `build` imports.
    """

    compiles_blocks: ClassVar[bool] = True  # whether blocks may be compiled: not with hooks inside of them

    def check_packages(self) -> None:
        """Raises ConfigError, with what to install, if a package that the plan needs is missing."""

    def build(self, ranks: Ranks, config: ParallelConfig, turn: Turn) -> ParallelPlan:
        """Imports the plan and builds it."""
        raise NotImplementedError

    def data_ranks(self, world_size: int) -> int:
        """How many shares the global batch is cut into; less than the ranks where some see the same samples."""
        return world_size

    def check(self, config: ParallelConfig, world_size: int, described: Described) -> None:
        """Raises ConfigError, naming the settings, if so many ranks cannot train what is described under this plan."""

    def environment(self, config: ParallelConfig) -> Mapping[str, str]:
        """Variables that have to be set before CUDA starts, where the user has not set them."""
        return {}

    @property
    def no_forward_derivative(self) -> str | None:
        """Why derivatives in forward mode cannot go through this plan's networks; None: they can."""
        return None

    def describe_network(
        self, network: Network, *, dtype: torch.dtype, block_dtype: torch.dtype | None, memory: int
    ) -> dict[str, object]:
        """What the plan decides about a network that learns, and what one use of it with a backward sends.

        Plain JSON values. `memory`: bytes of the smallest device of all ranks.
        """
        return {}


def divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
