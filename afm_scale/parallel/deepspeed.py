"""DeepSpeed ZeRO (arXiv 1910.02054): one engine for each player, of stage 1, 2 or 3.

    stage 1   the optimizer's state is sharded; weights and gradients are whole on every rank
    stage 2   gradients are sharded too, as soon as they are averaged
    stage 3   weights too, those of frozen networks (the average, guides) alike; hooks gather each layer for its use

An engine's forward opens books that only its own backward closes. So whoever does not move in a turn is called as its
raw module: a frozen discriminator called through its engine ends stages 1 and 2 in an IndexError, and trains on with
wrong weights, without any error, under stage 3.

ZeRO flattens what it shards: this rank's part of all weights, end to end in float32, and optimizer states of the same
layout. Checkpoints see names and shapes of the parameters, so a run may go on under any other plan.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from deepspeed.utils import logger
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ..core.errors import ConfigError
from ..core.network import Network, learning
from ..core.types import Role
from .base import BasePlan, WhileLearning
from .config import ParallelConfig
from .kinds.deepspeed import DeepSpeedConfig
from .kinds.kind import ONE_MICROBATCH, Turn
from .launch import Ranks
from .optim import OptimizerConfig, asking, build_optimizer
from .plan import Admits, Player, Weights

_BUCKET = 50_000_000  # elements reduced at once, which each engine may allocate; DeepSpeed's default is 2 GB


@dataclass(frozen=True)
class _Part:
    """Which elements of a flattened parameter this rank keeps, and where: in a flat partition, by its number."""

    start: int
    count: int
    partition: int = 0
    offset: int = 0

    def of(self, whole: Tensor) -> Tensor:
        return whole.reshape(-1)[self.start : self.start + self.count]

    def kept(self, partition: Tensor) -> Tensor:
        return partition[self.offset : self.offset + self.count]


class DeepSpeedPlan(BasePlan):
    """Raises ConfigError if DeepSpeed refuses its settings. The turn is the loop's; DeepSpeed has to be told."""

    def __init__(self, ranks: Ranks, config: ParallelConfig, turn: Turn = ONE_MICROBATCH) -> None:
        super().__init__(ranks, config, turn)
        self._stage = config.deepspeed.stage
        self._json = {
            "train_micro_batch_size_per_gpu": turn.microbatch,
            "gradient_accumulation_steps": turn.accumulation,
            "zero_optimization": zero_settings(config.deepspeed),
            "zero_force_ds_cpu_optimizer": False,  # ours steps on the CPU as well, and DeepSpeed's has to be compiled
            "timers": {"throughput": {"enabled": False}},  # it waits for the GPU in every forward
        }
        self._engines: dict[nn.Module, deepspeed.DeepSpeedEngine] = {}
        _join(ranks)
        self._mesh = init_device_mesh(self.device.type, (self.world_size,))

    def _with_optimizer(self, role: Role, module: nn.Module, config: OptimizerConfig) -> Player:
        # ZeRO wants an optimizer of whole parameters, and then puts flat partitions in their place. Ours is built over
        # these: no state of whole parameters is ever allocated, and what there is exists from the start.
        if len(learning(module)) < len(list(module.parameters())):
            raise ConfigError("parallel.plan deepspeed trains all weights of a network; use ddp or fsdp2 for adapters")
        placeholder = torch.optim.AdamW(module.parameters(), lr=0.0)
        json = self._json | {"gradient_clipping": config.max_grad_norm}
        engine, zero, _, _ = deepspeed.initialize(model=module, optimizer=placeholder, config=json)
        zero.optimizer = engine.basic_optimizer = build_optimizer(self._partitions(zero), config)
        self._engines[module] = engine
        return Player(
            role=role, module=module, parameters=tuple(module.parameters()),
            names=tuple(name for name, _ in module.named_parameters()), network=WhileLearning(module, engine),
            optimizer=zero.optimizer, max_grad_norm=config.max_grad_norm, learning_rate=config.learning_rate,
        )

    def frozen(self, module: Network, weights: Weights) -> nn.Module:
        module = super().frozen(module, weights)
        if self._stage == 3:  # for the engine's hooks, which gather for whoever calls the module
            self._engines[module], *_ = deepspeed.initialize(model=module, config=self._json)
        return module

    def backward(self, player: Player, loss: Tensor) -> None:
        assert self._is_among(player, self._movers), f"the engine of {player.role} has not moved"
        self._engines[player.module].backward(loss, scale_wrt_gas=False)  # the loop has divided by the microbatches

    def step(self, player: Player, step: int, admits: Admits | None = None) -> Tensor:
        """Does as the protocol says, but skips a step whose norm is not finite, and returns a norm of nan then.

        ZeRO knows the norm in the middle of its own step alone: there `admits` is asked, by a hook of the optimizer.
        """
        engine = self._engines[player.module]
        zero = engine.optimizer
        zero.refresh_fp32_params()  # who has written to the weights did not write to ZeRO's copy, which moves
        for group in zero.optimizer.param_groups:
            group["lr"] = player.learning_rate(step)
        with asking(zero.optimizer, lambda: admits is None or admits(self._norm(zero))) as asked:
            engine.step()  # clips by the same formula as BasePlan
        norm = self._norm(zero)
        if admits is not None and not asked:  # ZeRO has not come as far
            admits(norm)
        return norm

    def _norm(self, zero: Any) -> Tensor:
        """Of the step that ZeRO is in, or was in last; the engine knows it afterwards alone."""
        norm = float("nan") if zero.overflow else zero._global_grad_norm
        return torch.as_tensor(norm, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def initialise(self, module: nn.Module, weights: Weights, still: Collection[str] = ()) -> None:
        self.reshard(module)
        targets = module.state_dict(keep_vars=True)
        for name, value in weights:
            target = targets.pop(name)
            part = _part_of(target) if is_zero_param(target) else None
            (target if part is None else part.kept(target.ds_tensor)).copy_(value if part is None else part.of(value))
        missing = targets.keys() - set(still)
        assert not missing, f"no weights were given for {sorted(missing)}"

    def local_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        self.reshard(module)
        return {
            name: _part_of(tensor).kept(tensor.ds_tensor) if is_zero_param(tensor) else tensor.detach()
            for name, tensor in module.state_dict(keep_vars=True).items()
        }

    def reshard(self, module: nn.Module) -> None:
        # Small weights stay gathered, and others that a forward would soon use again.
        if self._stage == 3 and module in self._engines:
            optimizer = self._engines[module].optimizer
            offload = optimizer if isinstance(optimizer, DeepSpeedZeRoOffload) else optimizer.parameter_offload
            offload.partition_all_parameters()

    def state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        self.reshard(module)
        found = module.state_dict(keep_vars=True).items()
        return {name: self._sharded(tensor) if is_zero_param(tensor) else tensor.detach() for name, tensor in found}

    def optimizer_state_dict(self, player: Player) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": state.clone() if part is None else self._gathered(parameter, part, state)
            for name, parameter, part, key, state in self._states(player)
        }

    @torch.no_grad()
    def load_state_dict(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Under stages 1 and 2 nothing: they share storage."""
        if self._stage == 3:
            self.initialise(module, ((name, _whole(tensor)) for name, tensor in tensors.items()))

    @torch.no_grad()
    def load_optimizer_state_dict(self, player: Player, tensors: Mapping[str, Tensor]) -> None:
        for name, _, part, key, state in self._states(player):
            whole = _whole(tensors[f"{name}.{key}"])
            if part is None:
                state.copy_(whole)
            else:
                part.kept(state).copy_(part.of(whole))

    @contextmanager
    def _reducing(self, player: Player, last: bool) -> Iterator[None]:
        self._engines[player.module].set_gradient_accumulation_boundary(last)
        yield

    def _materialise(self, module: nn.Module, weights: Weights) -> nn.Module:
        if self._stage < 3:
            return super()._materialise(module, weights)
        # In the order of the weights, so that one of them at a time is whole: once it is sharded, its shape is gone.
        missing = set(module.state_dict())
        for name, value in weights:
            prefix, _, leaf = name.rpartition(".")
            owner, tensor = module.get_submodule(prefix), torch.empty_like(value, dtype=self.dtype, device=self.device)
            tensor.copy_(value)
            is_buffer = leaf in dict(owner.named_buffers(recurse=False))
            setattr(owner, leaf, tensor if is_buffer else nn.Parameter(tensor))
            if not is_buffer:
                alone = nn.ParameterList([getattr(owner, leaf)])
                deepspeed.zero.Init(module=alone, config_dict_or_path=self._json, dtype=self.dtype)
            missing.remove(name)
        assert not missing, f"no weights were given for {sorted(missing)}"
        return module

    def _states(self, player: Player) -> Iterator[tuple[str, nn.Parameter, _Part | None, str, Tensor]]:
        """Every state of the optimizer: of which parameter, which part of it, by which key; None: a number, no part."""
        zero = self._engines[player.module].optimizer
        partitions = self._partitions(zero)
        for name, parameter in player.module.named_parameters():
            part = _part_in_optimizer(zero, parameter)
            for key, state in zero.optimizer.state[partitions[part.partition]].items():
                yield name, parameter, part if state.ndim else None, key, state

    def _partitions(self, zero: Any) -> list[Tensor]:
        """The flat float32 weights that the optimizer moves."""
        return zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups

    def _sharded(self, parameter: nn.Parameter) -> Tensor:
        """A parameter of stage 3 as a checkpoint stores it."""
        return self._gathered(parameter, _part_of(parameter), parameter.ds_tensor)

    @torch.no_grad()
    def _gathered(self, parameter: nn.Parameter, part: _Part, partition: Tensor) -> Tensor:
        """A tensor shaped as the parameter from all ranks' parts, by rows over the ranks; collective.

        One at a time is whole. Rows, because a checkpoint knows them and nothing of flat partitions.
        """
        shape = parameter.ds_shape if is_zero_param(parameter) else parameter.shape
        whole = torch.zeros(shape, dtype=partition.dtype, device=self.device)
        part.of(whole).copy_(part.kept(partition))
        dist.all_reduce(whole)
        sharded = distribute_tensor(whole, self._mesh, [Shard(0)], src_data_rank=None)
        return DTensor.from_local(
            sharded.to_local().clone(), self._mesh, [Shard(0)], run_check=False, shape=shape, stride=whole.stride()
        )


def zero_settings(config: DeepSpeedConfig) -> dict[str, Any]:
    """`zero_optimization` of DeepSpeed's JSON. Raises ConfigError where DeepSpeed does not accept it."""
    settings = {
        "reduce_bucket_size": _BUCKET,
        "memory_efficient_linear": False,  # it would replace torch.nn.functional.linear in the whole process
        **config.zero, "stage": config.stage, "offload_optimizer": config.offload_optimizer,
        "offload_param": config.offload_param,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    try:
        DeepSpeedZeroConfig(**settings)
    except (ValidationError, AssertionError) as error:
        raise ConfigError(f"DeepSpeed refuses what parallel.deepspeed asks of it: {error}") from None
    return settings


def _join(ranks: Ranks) -> None:
    """DeepSpeed takes the process group that there is."""
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # it insists; srun does not set it
    logger.setLevel("WARNING")
    # An operation for inference on CPUs that takes a minute to compile. (deepspeed.comm.torch is torch itself.)
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    # It gathers and reduces by names that torch 2.13 deprecates, and says so in every process.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)
    groups = import_module("deepspeed.utils.groups")
    if groups._WORLD_GROUP is not None and groups._WORLD_GROUP not in dist.distributed_c10d._world.pg_map:
        groups._release_process_group_references()  # a dry run before this one had a process group, which is no more
    deepspeed.init_distributed()


def _part_of(parameter: nn.Parameter) -> _Part:
    """This rank's part of a parameter of stage 3.

    Ranks keep equally many elements; the last ones fill up with what does not count.
    """
    size = parameter.ds_tensor.numel()
    start = min(size * parameter.ds_zero_partition_rank, parameter.ds_numel)
    return _Part(start, min(size, parameter.ds_numel - start))


def _part_in_optimizer(zero: Any, parameter: nn.Parameter) -> _Part:
    if is_zero_param(parameter):
        partition, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        part = _part_of(parameter)
        return _Part(part.start, part.count, partition, offset)
    mapping = parameter._hp_mapping
    if mapping is None:  # it lies on other ranks
        return _Part(0, 0)
    inside, outside = mapping.lp_fragment_address, mapping.hp_fragment_address
    return _Part(inside.start, inside.numel, mapping.param_group_index, outside.start)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
