"""The guard: an update whose gradient is not finite, or spikes, is not made.

The norm of every turn's gradient is read before the optimizer moves: one number over the ranks, and one wait for the
device, in each turn. Where the guard is off the loop waits for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from ...core.errors import DivergenceError
from ...core.ranges import Range
from ...core.types import Role
from ...parallel.plan import ParallelPlan
from ..hooks.events import EventLog
from ..state import TrainState
from .memory import Guarded

_LEAST = 10  # norms of a player before one of them can be a spike: the first ones of a run differ most


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What an update may be like, and how often one may be left out."""

    # an update is skipped if its gradient's norm is so many times the median of that player's last ones; null: only if
    # it is not finite. A discriminator's norms are uneven: good runs have some of eighty times (docs/pilot.md)
    spike: Annotated[float, Range(above=1, high=1e9)] | None = 100.0
    # spikes in a row that are skipped; the next one is made: where only the update leads out, to wait would be for ever
    lasting: Annotated[int, Range(1, 1_000_000)] = 3
    window: Annotated[int, Range(_LEAST, 10_000)] = 100  # updates of a player that the median is of, the newest
    # weights that have grown to so many times their norm at the last save are not saved, and end the run; null: any are
    growth: Annotated[float, Range(above=1, high=1e9)] | None = 10.0
    # updates of a player in a row whose gradient is not finite; one more ends the run
    most_skips: Annotated[int, Range(1, 1_000_000)] = 10


class Guard:
    """Collective in all it does."""

    def __init__(self, config: GuardConfig, plan: ParallelPlan, events: EventLog) -> None:
        self.config = config
        self.plan = plan
        self.events = events
        self.reasons: dict[str, str] = {}  # why the last update that was not made was not, by player

    def after_step(self, state: TrainState) -> None:
        """Raises DivergenceError, on all ranks alike, if too many updates in a row were not made."""
        assert state.pilot is not None
        for name, skips in state.pilot.guard.skips.items():
            if skips > self.config.most_skips:
                raise DivergenceError(
                    f"{skips} updates of the {name} in a row were not made, the last at step {state.step}: "
                    f"{self.reasons.get(name)}. The newest checkpoint is from before or among them; lower "
                    f"optimizer.{name}.learning_rate, or raise pilot.guard.most_skips, and run the same command again"
                )

    def before_save(self, state: TrainState) -> None:
        """Of every player and average, whether its weights may be saved; they are remembered as the last good ones.

        Raises DivergenceError, on all ranks alike, for weights that have exploded: losses may be finite all the same.
        """
        if self.config.growth is None:
            return
        assert state.pilot is not None
        modules = {role.value: player.module for role, player in state.players.items()}
        modules |= {name: average.network for name, average in state.averages.items()}
        found = {name: float(norm_of(module, self.plan)) for name, module in modules.items()}
        before = state.pilot.guard.weights
        for name, norm in found.items():
            limit = self.config.growth * max(before.get(name, math.inf), 1.0)
            if not math.isfinite(norm) or norm > limit:
                raise DivergenceError(
                    f"the weights of the {name} have a norm of {norm:.3g} at step {state.step}, "
                    f"{before.get(name, math.nan):.3g} at the last save: they were not saved, and the newest "
                    "checkpoint is from before. Lower the learning rate or pilot.guard.spike and run the same command "
                    "again to go on; or raise pilot.guard.growth"
                )
        state.pilot = replace(state.pilot, guard=replace(state.pilot.guard, weights=found))

    def of_turn(self, state: TrainState, role: Role) -> Judge:
        """To be called before the turn's first loss."""
        return Judge(self, state, role)


class Judge:
    """Of one turn: whether its update is made. If not, the objective's state is as before the turn.

    The optimizer's state, the weights and the average are left alone by whoever asks (`ParallelPlan.step`, the loop).
    """

    def __init__(self, guard: Guard, state: TrainState, role: Role) -> None:
        self.has_refused = False
        self._guard = guard
        self._state = state
        self._role = role
        self._kept = {name: value.clone() for name, value in state.objective.state_dict().items()}

    def __call__(self, norm: Tensor) -> bool:
        """Of the gradient, [], before clipping. The mean over the ranks decides: kernels may differ in the last bit."""
        assert self._state.pilot is not None
        found = float(self._guard.plan.mean_(norm.detach().clone()))
        memory, name = self._state.pilot.guard, self._role.value
        why = why_skipped(self._guard.config, memory.norms.get(name, ()), found, memory.skips.get(name, 0))
        self.has_refused = why is not None
        if why is not None:
            self._put_back()
            norm_or_null = found if math.isfinite(found) else None
            step = self._state.step + 1  # as every report counts
            self._guard.events.write("act", step=step, act="skip", player=name, norm=norm_or_null, why=why)
            self._guard.reasons[name] = why
        changed = after(self._guard.config, memory, name, found, is_made=why is None)
        self._state.pilot = replace(self._state.pilot, guard=changed)
        return why is None

    @torch.no_grad()
    def _put_back(self) -> None:
        """A gradient that is not finite was in the running mean of the gradient scale, where it would stay for ever."""
        for name, value in self._state.objective.state_dict().items():
            value.copy_(self._kept[name])


def why_skipped(config: GuardConfig, norms: tuple[float, ...], norm: float, skips: int) -> str | None:
    """Why an update is not made; None: it is made.

    Args:
        norms: of the player's last updates that were made.
        norm: its own.
        skips: how many just before it were not made.
    """
    if not math.isfinite(norm):
        return "the gradient is not finite"
    if config.spike is None or len(norms) < _LEAST or skips >= config.lasting:
        return None
    usual = median(norms)  # of a player that had nothing to learn it is 0, and what it learns first is no spike
    if norm > config.spike * usual > 0:
        return f"the gradient's norm is {norm / usual:.3g} times the usual {usual:.3g}"
    return None


def after(config: GuardConfig, memory: Guarded, player: str, norm: float, *, is_made: bool) -> Guarded:
    """What is to be remembered of a turn: a spike must not raise the bar for the next one."""
    if not is_made:
        return replace(memory, skips={**memory.skips, player: memory.skips.get(player, 0) + 1})
    norms = (*memory.norms.get(player, ()), norm)[-config.window :]
    return replace(memory, norms={**memory.norms, player: norms}, skips={**memory.skips, player: 0})


@torch.no_grad()
def norm_of(module: nn.Module, plan: ParallelPlan) -> Tensor:
    """The L2 norm of all of a network's floating tensors, [] float64, the same on every rank. Collective."""
    total = torch.zeros((), dtype=torch.float64, device=plan.device)
    for tensor in plan.state_dict(module).values():
        local, shards = tensor, 1
        if isinstance(tensor, DTensor):
            local = tensor.to_local()
            parts = (isinstance(place, Shard) for place in tensor.placements)
            shards = math.prod(size for size, is_cut in zip(tensor.device_mesh.shape, parts, strict=True) if is_cut)
        if local.is_floating_point():
            total += shards * local.detach().double().square().sum()
    return plan.mean_(total).sqrt()
