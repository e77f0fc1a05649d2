"""Counts collectives while a step runs: whose turn, in which phase, for which network, of which kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...parallel.plan import Admits, ParallelPlan, Player

Phase = Literal["forward", "backward", "step", "between"]

_NAMESPACES = ("c10d", "_c10d_functional", "c10d_functional")
_WAITING = ("wait_tensor", "monitored_barrier_")
_KINDS = {
    "allgather": "all-gather", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
    "allreduce": "all-reduce", "all_reduce": "all-reduce", "alltoall": "all-to-all", "all_to_all": "all-to-all",
    "broadcast": "broadcast", "barrier": "barrier",
}


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Collectives that one rank issued alike. `bytes`: whole tensors, of a gather its result, of a reduction its input.

    turn: whose it was; none outside of turns (data, the average).
    phase: forward, backward (that of a frozen network to its input too), step (clipping, optimizer), or between.
    network: whose weights or gradients were sent; none for other values, such as the gradient normaliser.
    """

    turn: str
    phase: Phase
    network: str
    kind: str
    count: int
    bytes: int


class Tape(TorchDispatchMode):
    """Notes every collective that Python or C++ hands to torch's dispatcher while the mode is on.

    torch's CommDebugMode cannot be used: it fails when a module is called twice.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.mover, self.phase = "none", "between"
        self._owners = {part: name for name, network in networks.items() for part in network.modules()}
        self._found: dict[tuple[str, Phase, str, str, tuple[int, ...]], tuple[int, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.see(func, args, out)
        return out

    def see(self, func: Any, args: tuple, out: Any) -> None:
        """Notes an operation, if it is a collective; for who has another mode on."""
        if func.namespace in _NAMESPACES:
            name = func.name().partition("::")[2].partition(".")[0]
            if name not in _WAITING:
                self._note(name, max(_bytes(value) for value in (*args, out)), _ranks_of(args))

    def traffic(self) -> list[Traffic]:
        """In the order in which each kind was first met."""
        found: dict[tuple[str, Phase, str, str], Traffic] = {}
        for row, _ in self.by_ranks():
            key = (row.turn, row.phase, row.network, row.kind)
            if (before := found.get(key)) is not None:
                row = replace(row, count=before.count + row.count, bytes=before.bytes + row.bytes)
            found[key] = row
        return list(found.values())

    def by_ranks(self) -> Iterator[tuple[Traffic, tuple[int, ...]]]:
        """The same, apart by the ranks that take part."""
        for (turn, phase, network, kind, ranks), (count, size) in self._found.items():
            yield Traffic(turn=turn, phase=phase, network=network, kind=kind, count=count, bytes=size), ranks

    def clear(self) -> None:
        self._found.clear()

    def _note(self, name: str, size: int, ranks: tuple[int, ...]) -> None:
        # A graph may also run inside the forward phase: autograd.grad, through a frozen discriminator to its input.
        phase = "backward" if self.phase == "forward" and torch._C._current_graph_task_id() != -1 else self.phase
        key = (self.mover, phase, self._owner(phase), _kind(name), ranks)
        count, before = self._found.get(key, (0, 0))
        self._found[key] = (count + 1, before + size)

    def _owner(self, phase: Phase) -> str:
        """FSDP2 gathers and reduces in methods of a group that knows its modules, ZeRO-3 gathers in those of an object
        of the network; what else is reduced is the mover's."""
        frame = sys._getframe(2)
        while frame is not None:
            group = frame.f_locals.get("self")
            if type(group).__name__ == "FSDPParamGroup":
                return self._owners[group.modules[0]]
            if type(group).__name__ == "DeepSpeedZeRoOffload":
                return self._owners[group.module]
            frame = frame.f_back
        return self.mover if phase in ("backward", "step") else "none"


class WatchedPlan:
    """A plan that tells the tape whose turn it is, and what is being done."""

    def __init__(self, plan: ParallelPlan, tape: Tape) -> None:
        self._plan = plan
        self._tape = tape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    @contextmanager
    def turn_of(self, player: Player, *, last: bool, beside: Sequence[Player] = ()) -> Iterator[None]:
        with self._noting(player, "forward"), self._plan.turn_of(player, last=last, beside=beside):
            yield

    def backward(self, player: Player, loss: Tensor) -> None:
        with self._noting(player, "backward"):
            self._plan.backward(player, loss)

    def step(self, player: Player, step: int, admits: Admits | None = None) -> Tensor:
        with self._noting(player, "step"):
            return self._plan.step(player, step, admits)

    @contextmanager
    def _noting(self, player: Player, phase: Phase) -> Iterator[None]:
        before = self._tape.mover, self._tape.phase
        self._tape.mover, self._tape.phase = player.role.value, phase
        try:
            yield
        finally:
            self._tape.mover, self._tape.phase = before


def _ranks_of(args: tuple) -> tuple[int, ...]:
    """Of the process group among the arguments: an object, or in functional collectives its name, which comes last."""
    for value in args:
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(value)))
    names = [value for value in args if isinstance(value, str)]
    return tuple(dist.get_process_group_ranks(names[-1])) if names else ()


def _kind(name: str) -> str:
    bare = name.strip("_")
    return next((kind for start, kind in _KINDS.items() if bare.startswith(start)), bare)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
