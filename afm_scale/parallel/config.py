"""How players are laid over the ranks, and what they compute in: what a recipe may choose under `parallel`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Literal

import torch

from ..core.arithmetic import Precision
from ..core.packages import require
from ..core.ranges import Range
from ..ops.choice import Setting
from .kinds.kind import Described, PlanKind
from .precision import check_precision
from .recompute import Recompute, RecomputeConfig
from .table import PLANS

PlanName = Literal[tuple(PLANS)]


@dataclass(frozen=True, kw_only=True)
class _OfAllPlans:
    plan: PlanName  # how the players are laid over the ranks
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is a GPU
    precision: Precision = "fp32"  # of the arithmetic; see docs/parallel.md
    ops: Setting = "auto"  # implementation of the fused operations; auto: the fastest that works here, see `doctor`
    compile: bool | None = None  # torch.compile of what learns, block by block; null: on a GPU, where the plan lets it
    deterministic: bool = False  # on a GPU: only kernels that give the same bits every time; the CPU's always do
    timeout_seconds: Annotated[int, Range(1, 10_000_000)] = 600  # a collective that waits longer ends the run
    elastic: bool = False  # go on with fewer ranks than before, the global batch kept by loop.accumulation
    recompute: RecomputeConfig = Recompute()  # in networks that learn


_WithEachPlan = make_dataclass(
    "_WithEachPlan", [(name, kind, field(default_factory=kind)) for name, kind in PLANS.items() if fields(kind)],
    bases=(_OfAllPlans,), frozen=True, kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(_WithEachPlan):
    """How the players are laid over the ranks, and in which arithmetic they compute.

    Fields: those above, and the settings of each kind of plan in the table that has any (`fsdp2`, `deepspeed`, ...).

    fp32, tf32 (fp32 with TF32 matrix products), fp64 (for checks): everything.
    bf16: the blocks; weights at rest, sums of gradients over ranks, optimizer, average and all outside the blocks stay
        fp32, and so do the blocks in a precise call of the discriminator (`objective.penalty.precise`), with TF32.
    fp8: the same, and the large products of the blocks of networks that learn in fp8 (needs torchao and a GPU with it).
    """

    @property
    def of_plan(self) -> PlanKind:
        """The settings of the plan that was chosen, and what it says of itself."""
        kind = PLANS[self.plan]
        return getattr(self, self.plan) if fields(kind) else kind()

    @property
    def dtype(self) -> torch.dtype:
        """Weights, their gradients and the samples are of this dtype."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def no_forward_derivative(self) -> str | None:
        """Why derivatives in forward mode (flow/derivative.py) cannot go through these networks; None: they can."""
        if self.of_plan.no_forward_derivative is None and self.precision == "fp8":
            return "the products of parallel.precision fp8 have none; set parallel.precision=bf16"
        return self.of_plan.no_forward_derivative

    def compiles_on(self, device_type: str) -> bool:
        """What `compile` means on devices of this type: null is on a GPU, where the plan's blocks can be."""
        return device_type == "cuda" and self.of_plan.compiles_blocks if self.compile is None else self.compile

    def data_ranks(self, world_size: int) -> int:
        """How many shares the global batch is cut into: ranks that split a block's work see the same samples."""
        return self.of_plan.data_ranks(world_size)

    def check_packages(self) -> None:
        """Raises ConfigError, with what to install, if a package is missing that the plan or the precision needs."""
        if self.precision == "fp8":
            require("torchao", "parallel.precision 'fp8'", "fp8")
        self.of_plan.check_packages()

    def check(self, world_size: int, described: Described) -> None:
        """Raises ConfigError, naming the settings, if so many ranks cannot train what is described in this way."""
        self.of_plan.check(self, world_size, described)
        check_precision(self.precision, described.networks)
