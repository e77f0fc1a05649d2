"""How players are laid over the ranks: what a recipe may choose under `parallel`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..core.arithmetic import Precision
from ..core.errors import ConfigError
from ..ops.choice import Setting
from .recompute import Recompute, RecomputeConfig


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
class DeepSpeedConfig:
    """ZeRO, by one engine for each player. What DeepSpeed can be told beyond these, it is told as its JSON would.

    stage: what is sharded. 1: the optimizer's state; 2: gradients too; 3: weights too, and the average and guides.
    """

    stage: Literal[1, 2, 3] = 2
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


@dataclass(frozen=True, kw_only=True)
class MegatronConfig:
    """Tensor parallelism: `tensor` neighbouring ranks share every block's work, and see the same samples."""

    tensor: int = 2

    def __post_init__(self) -> None:
        if self.tensor < 1:
            raise ConfigError(f"parallel.megatron.tensor is {self.tensor}; it must be 1 (none) or more")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the players are laid over the ranks, and in which arithmetic they compute.

    fp32, tf32 (fp32 with TF32 matrix products), fp64 (for checks): everything.
    bf16: the blocks; weights at rest, sums of gradients over ranks, optimizer, average and all outside the blocks stay
        fp32, and so do the blocks in a precise call of the discriminator (`objective.penalty.precise`), with TF32.
    fp8: the same, and the large products of the blocks of networks that learn in fp8 (needs torchao and a GPU with it).
    """

    plan: Literal["ddp", "fsdp2", "deepspeed", "megatron"]
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is a GPU
    precision: Precision = "fp32"
    ops: Setting = "auto"  # implementation of the fused operations; auto: the fastest that works here, see `doctor`
    compile: bool | None = None  # torch.compile of what learns, block by block; null: on a GPU
    deterministic: bool = False  # on a GPU: only kernels that give the same bits every time; the CPU's always do
    timeout_seconds: int = 600  # a collective that waits longer ends the run
    recompute: RecomputeConfig = Recompute()  # in networks that learn
    fsdp2: FSDP2Config = FSDP2Config()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    megatron: MegatronConfig = MegatronConfig()

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, their gradients and the samples."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def hooks_in_blocks(self) -> bool:
        """Whether weights are gathered layer by layer, by hooks inside of blocks, which then cannot be compiled."""
        return self.plan == "deepspeed" and self.deepspeed.stage == 3

    @property
    def no_forward_derivative(self) -> str | None:
        """Why derivatives in forward mode (flow/derivative.py) cannot go through these networks; None: they can."""
        if self.plan == "megatron":
            return "the layers of parallel.plan 'megatron' have none; set parallel.plan to ddp or fsdp2"
        if self.hooks_in_blocks:
            return "the hooks of parallel.deepspeed.stage 3 have none; set parallel.deepspeed.stage=2"
        if self.precision == "fp8":
            return "the products of parallel.precision fp8 have none; set parallel.precision=bf16"
        return None

    def data_ranks(self, world_size: int) -> int:
        """How many shares the global batch is cut into: ranks that split a block's work see the same samples."""
        return world_size // self.megatron.tensor if self.plan == "megatron" else world_size
