"""The divergence guard: a loss term or gradient norm that is not finite, on any rank, ends the run on all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import DivergenceError
from ...core.ranges import Count
from ...parallel.plan import ParallelPlan
from ..state import TrainState
from .events import EventLog
from .hook import QuietHook, StepReport
from .surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """Every step is checked on the device; the host looks every `every_steps` and before every save."""

    every_steps: Count = 10  # between two looks of the host


class DivergenceGuard(QuietHook):
    """Remembers, on the device, the first step at which each value was not finite.

    The checkpoint hook has it look before every save: no checkpoint holds the result of a step that was not finite, so
    the newest complete one is always good.
    """

    def __init__(self, plan: ParallelPlan, config: DivergenceConfig, events: EventLog) -> None:
        self._plan = plan
        self._config = config
        self._events = events
        self._names: tuple[str, ...] = ()
        self._begin: int | None = None  # the first step of this process
        self._first: Tensor | None = None  # [num_values] float64: first step that was not finite, infinity if none

    def on_start(self, state: TrainState) -> None:
        self._names, self._begin, self._first = (), None, None

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if self._begin is None:
            self._begin = report.step
        values = _in_order_of_play(report)
        if tuple(values) != self._names:
            self.look()
            self._names = tuple(values)
        if values:  # of updates that were held back there are none
            finite = torch.isfinite(torch.stack(list(values.values())))
            first = torch.where(finite, math.inf, float(report.step)).double()
            self._first = first if self._first is None else torch.minimum(self._first, first)
        if report.step % self._config.every_steps == 0:
            self.look()

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        if error is None:
            self.look()

    def look(self) -> None:
        """Reads what was remembered since the last look. All ranks call it at the same step; waits for the device.

        Raises DivergenceError, the same on every rank, naming the first value that was not finite.
        """
        if self._first is None:
            return
        world_size = self._plan.world_size
        table = self._first.new_zeros(world_size, len(self._names))
        table[self._plan.rank] = self._first
        self._first = None
        found = [
            (round(step), position, rank)
            for rank, row in enumerate((self._plan.mean_(table) * world_size).tolist())
            for position, step in enumerate(row)
            if math.isfinite(step)
        ]
        if not found:
            return
        step, position, rank = min(found)
        player, term = self._names[position].split("/", 1)
        self._events.write("divergence", step=step, player=player, term=term, rank=rank)
        raise DivergenceError(
            f"the {player}'s {term} was not finite at step {step} on rank {rank}; {self._what_to_do(player, step)}"
        )

    def _what_to_do(self, player: str, step: int) -> str:
        """A step too large shows in the one after it: what the first one met was there before."""
        if step == self._begin:
            return (
                "it was the first step here, so a learning rate is hardly the cause. Look for numbers not finite "
                "or far too large in what the run begins with, in weights that guide it and in its data, and for "
                "settings of the objective that divide by almost nothing"
            )
        return (
            f"the newest checkpoint is from before it. Lower optimizer.{player}.learning_rate or max_grad_norm and run "
            "the same command again to go on"
        )


def build(config: DivergenceConfig, around: Surroundings) -> DivergenceGuard:
    guard = DivergenceGuard(around.plan, config, around.events)
    around.before_save.append(lambda state: guard.look())
    return guard


def _in_order_of_play(report: StepReport) -> dict[str, Tensor]:
    """Every value by name, in the order a step computes them: a player's terms, then its gradient norm."""
    values: dict[str, Tensor] = {}
    for player, norm in report.grad_norms.items():
        values |= {name: value for name, value in report.terms.items() if name.startswith(f"{player}/")}
        values[f"{player}/gradient norm"] = norm
    return values
