"""A training step of one of many ranks, taken here without them and without computing anything.

It is the run's own code: plan, state and loop, over a process group that sends nothing (torch's fake one) and kernels
that write nothing (`estimate/hollow.py`). What its tensors would hold is known by their births and deaths, what it
would send by the collectives it issues, what it would compute by the kernels that were left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from ...core.types import PUBLISHED
from ...data.toys.synthetic import like
from ...estimate.costs import Around, Cost, Costs
from ...estimate.hollow import Hollow
from ...estimate.ledger import Ledger
from ...estimate.memory import StepMemory, step_memory
from ...models.layers import initial_weights
from ...parallel.launch import Ranks
from ...parallel.plan import ParallelPlan
from ...train.hooks.hook import HookList
from ...train.loop import train
from ...train.state import TrainState
from ..build import build_plan, build_state
from ..check import check
from ..config import RunConfig
from ..guides import frozen_modules
from .tape import Tape, Traffic, WatchedPlan


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What one rank's step takes."""

    memory: StepMemory
    traffic: Sequence[tuple[Traffic, tuple[int, ...]]]  # with the ranks that take part
    costs: Mapping[tuple[str, str], Counter[Cost]]  # by mover and occasion
    around: Around
    described: Mapping[str, Any]  # the plan, as a run's start event has it


def dry_run(
    config: RunConfig, world_size: int, *, rank: int = 0, memory: int | None = None, warm_up: int = 1
) -> DryRun:
    """Takes `warm_up` steps and watches the next. Raises ConfigError, as training would, if the ranks do not suit.

    No process group may be there; afterwards there is none.

    Args:
        memory: bytes of each rank's device, by which plans choose; None: as this machine's.
        warm_up: steps before: buffers that the first one makes are there in all others.
    """
    check(config, world_size)
    config = hollow_config(config)
    ledger, device = Ledger(), torch.device("cpu")
    costs = Costs(ledger)
    with _alone_of(world_size, rank), ExitStack() as open_until_the_end:
        ranks = Ranks(rank=rank, local_rank=0, world_size=world_size, device=device, memory=memory)
        plan = build_plan(config, ranks)
        tape = _LinkedTape(ledger)
        hollow = Hollow(ledger, costs, lambda func, args, kwargs, out, key: tape.see(func, args, out))
        open_until_the_end.enter_context(ledger.watching_resizes())
        open_until_the_end.enter_context(_cutting_one_shard())
        open_until_the_end.enter_context(hollow)
        state = build_state(config, ranks, plan, frozen=_guides(config, plan))
        tape.know(state)
        with closing(state.data):
            _say_whose(ledger, plan, state)
            _reduce_through_python(state)
            with _naming_networks(ledger, state):
                watched, config_of = WatchedPlan(plan, tape), lambda steps: replace(config.loop, steps=steps)
                train(state, watched, config_of(warm_up), HookList([]))
                _say_whose(ledger, plan, state)
                since = ledger.now
                tape.clear()
                costs.clear()
                train(state, watched, config_of(warm_up + 1), HookList([]))
        described = plan.describe({role.value: player.module for role, player in state.players.items()})
        lives = list(ledger.lives)
        found = DryRun(
            memory=step_memory(lives, since), traffic=list(tape.by_ranks()), costs=dict(costs.found),
            around=costs.around, described=described,
        )
    return found


def hollow_config(config: RunConfig) -> RunConfig:
    """The same as far as a step is concerned, with nothing that needs a GPU, a compiler or files."""
    precision = "bf16" if config.parallel.precision == "fp8" else config.parallel.precision
    samples = like(config.data)
    return replace(
        config, data=samples, parallel=replace(config.parallel, device="cpu", precision=precision, compile=False),
        model=replace(config.model.without_files(), compile_guides=False),
    )


@contextmanager
def _alone_of(world_size: int, rank: int) -> Iterator[None]:
    assert not dist.is_initialized(), "a dry run has a process group of its own"
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Parts:
    """What `torch.chunk` gives, and empty ones after it, each cut when it is asked for."""

    def __init__(self, tensor: Tensor, count: int, dim: int) -> None:
        self._tensor, self._dim = tensor, dim
        self._length = -(-tensor.size(dim) // count)

    def __getitem__(self, index: int) -> Tensor:
        whole = self._tensor.size(self._dim)
        begin = index * self._length
        if begin >= whole:
            return self._tensor.new_empty(0)
        return self._tensor.narrow(self._dim, begin, min(self._length, whole - begin))


@contextmanager
def _cutting_one_shard() -> Iterator[None]:
    """FSDP2 cuts every tensor into a part for each rank, and takes its own: of 1,024 ranks that takes most of the time
    of a dry run."""
    plain = _fsdp_param._chunk_with_empty
    _fsdp_param._chunk_with_empty = Parts
    try:
        yield
    finally:
        _fsdp_param._chunk_with_empty = plain


def _guides(config: RunConfig, plan: ParallelPlan) -> dict[str, nn.Module]:
    return {
        name: plan.frozen(network, initial_weights(network, config.loop.seed, name))
        for name, network in frozen_modules(config).items()
    }


def _modules(state: TrainState) -> dict[str, nn.Module]:
    players = {role.value: player.module for role, player in state.players.items()}
    averages = {
        "average" if name == PUBLISHED else name: average.network for name, average in state.averages.items()
    }
    return players | averages | dict(state.frozen)


class _LinkedTape(Tape):
    """Notes collectives, and tells the ledger whose turn it is."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        super().__init__({})

    def know(self, state: TrainState) -> None:
        self._owners = {part: name for name, network in _modules(state).items() for part in network.modules()}
        self._ledger.mover, self._ledger.occasion = "none", "between"

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "mover":
            self._ledger.mover = value
        elif name == "phase":
            self._ledger.occasion = value


def _say_whose(ledger: Ledger, plan: ParallelPlan, state: TrainState) -> None:
    """What lies there between steps."""
    for role, player in state.players.items():
        ledger.own(f"{role.value}:optimizer", _tensors_of(dict(player.optimizer.state)))
        for parameter in player.module.parameters():
            if parameter.grad is not None:
                ledger.own(f"{role.value}:gradients", [_plain(parameter.grad)])
        ledger.own(f"{role.value}:weights", map(_plain, _held(player.module)))
        for group in player.optimizer.param_groups:
            ledger.own(f"{role.value}:weights", group["params"])
    for name, average in state.averages.items():
        ledger.own(f"{'generator' if name == PUBLISHED else name}:average", map(_plain, _held(average.network)))
    for name, network in state.frozen.items():
        ledger.own(f"{name}:guides", map(_plain, _held(network)))


def _held(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for parameter in module.parameters():  # of ZeRO-3: its part
        if (part := getattr(parameter, "ds_tensor", None)) is not None:
            yield part


def _plain(tensor: Tensor) -> Tensor:
    local = getattr(tensor, "_local_tensor", tensor)
    return local.detach()


def _tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_of(item)


def _reduce_through_python(state: TrainState) -> None:
    """DDP's reducer wants a result of its collectives, which the fake group's have not."""

    def reduce(group, bucket):  # torch compares annotations, which are text here
        dist.all_reduce(bucket.buffer(), group=group)
        reduced: torch.futures.Future[Tensor] = torch.futures.Future()
        reduced.set_result(bucket.buffer())
        return reduced

    for player in state.players.values():
        wrapper = getattr(player.network, "wrapper", None)
        if isinstance(wrapper, DistributedDataParallel):
            wrapper.register_comm_hook(wrapper.process_group, reduce)


@contextmanager
def _naming_networks(ledger: Ledger, state: TrainState) -> Iterator[None]:
    """Tells the ledger which network is being called."""
    hooks = []
    for name, module in _modules(state).items():
        before: list[str] = []

        def enter(module: nn.Module, args: Any, name: str = name, before: list[str] = before) -> None:
            before.append(ledger.network)
            ledger.network = name

        def leave(module: nn.Module, args: Any, out: Any, before: list[str] = before) -> None:
            ledger.network = before.pop()

        hooks += [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
