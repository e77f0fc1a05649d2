"""What DeepSpeed may be told, and what it cannot do."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ...core.errors import ConfigError
from ...core.packages import require
from .kind import Described, PlanKind, Turn

if TYPE_CHECKING:
    from ..config import ParallelConfig
    from ..launch import Ranks
    from ..plan import ParallelPlan


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig(PlanKind):
    """ZeRO, by one engine for each player. What DeepSpeed can be told beyond these, it is told as its JSON would.

    stage: what is sharded. 1: the optimizer's state; 2: gradients too; 3: weights too, and the average and guides.
    """

    stage: Literal[1, 2, 3] = 2  # 1: the optimizer's state is sharded; 2: gradients too; 3: weights too
    offload_optimizer: dict[str, Any] | None = None  # {device: cpu, ...}: its state and step to the host
    offload_param: dict[str, Any] | None = None  # {device: cpu, ...}: weights that are not in use; of stage 3
    zero: dict[str, Any] = field(default_factory=dict)  # further keys of zero_optimization

    def __post_init__(self) -> None:
        for name in ("offload_optimizer", "offload_param"):
            self._check_offload(name, getattr(self, name))
        if self.offload_param is not None and self.stage < 3:
            raise ConfigError(
                f"offload_param is of weights that are sharded, which stage {self.stage} does not do; set stage=3, or "
                "offload_param=null"
            )
        for key in self.zero:
            if key in _NOT_ZERO:
                raise ConfigError(f"zero.{key} {_NOT_ZERO[key]}; leave it out")

    @property
    def compiles_blocks(self) -> bool:
        """Stage 3 gathers weights layer by layer, by hooks inside of blocks, which then cannot be compiled."""
        return self.stage < 3

    @property
    def no_forward_derivative(self) -> str | None:
        if self.stage == 3:
            return "the hooks of parallel.deepspeed.stage 3 have none; set parallel.deepspeed.stage=2"
        return None

    def check_packages(self) -> None:
        require("deepspeed", "parallel.plan 'deepspeed'", "deepspeed")

    def build(self, ranks: Ranks, config: ParallelConfig, turn: Turn) -> ParallelPlan:
        os.environ.setdefault("DS_ACCELERATOR", ranks.device.type)  # read by deepspeed when it is imported
        from ..deepspeed import DeepSpeedPlan

        return DeepSpeedPlan(ranks, config, turn)

    def check(self, config: ParallelConfig, world_size: int, described: Described) -> None:
        """Refuses what ZeRO cannot do together with other settings; its own are checked where they are read."""
        if config.precision == "fp64":
            raise ConfigError(
                "parallel.precision fp64 is not for parallel.plan 'deepspeed': ZeRO moves float32 copies of the "
                "weights; set parallel.precision=fp32, or parallel.plan=fsdp2"
            )
        if self.compiles_blocks:
            return
        if config.recompute.kind == "selective":
            raise ConfigError(
                "parallel.recompute 'selective' keeps some results of a block by their order, but "
                "parallel.deepspeed.stage 3 gathers weights inside of the block, in another order when it is computed "
                "again; set parallel.recompute=full, or parallel.deepspeed.stage=2"
            )
        for setting, wanted in (
            ("parallel.compile", config.compile), ("model.compile_guides", described.compile_guides)
        ):
            if wanted:
                raise ConfigError(
                    f"{setting} is true, but parallel.deepspeed.stage 3 gathers weights by hooks inside of the blocks, "
                    f"which cannot be compiled with them; set {setting}=false, or parallel.deepspeed.stage=2"
                )

    def _check_offload(self, name: str, settings: dict[str, Any] | None) -> None:
        if settings is None:
            return
        if settings.get("device") != "cpu":
            raise ConfigError(
                f"{name}.device is {settings.get('device')!r}; only cpu will do, since checkpoints and the average "
                f"read what is offloaded: set {name}.device=cpu, or {name}=null"
            )
        for key in settings.keys() & {"ratio", "super_offload"}:
            raise ConfigError(f"{name}.{key} needs DeepSpeed's own optimizer, which is not used; leave it out")


_NOT_ZERO = {
    "stage": "is parallel.deepspeed.stage", "offload_optimizer": "is parallel.deepspeed.offload_optimizer",
    "offload_param": "is parallel.deepspeed.offload_param", "cpu_offload": "is parallel.deepspeed.offload_optimizer",
    "cpu_offload_param": "is parallel.deepspeed.offload_param",
    "round_robin_gradients": "keeps weights in an order that checkpoints would not know",
    "zero_quantized_nontrainable_weights": "rounds the average at every update",
    "compute_grad_norm": "would leave nothing to report, and to clip by",
    "zenflow": "needs DeepSpeed's own optimizer, which is not used",
}
