"""Training, for every objective: players take turns until enough steps are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from ..core.random import KeyedDraws, Positions
from ..core.ranges import MANY, Range, Seed
from ..core.types import Batch, Loss, Role, Turn
from ..data.source import Skipped
from ..parallel.plan import ParallelPlan
from .hooks.hook import HookList, StepReport
from .pilot.pilot import NoPilot, Pilot
from .state import TrainState


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """One step is one turn of every player, counted by updates of the learner: the generator, or a classifier."""

    steps: Annotated[int, Range(0, MANY)]  # updates of the learner in the whole run
    accumulation: Annotated[int, Range(1, 1_000_000)] = 1  # microbatches that share one update
    seed: Seed = 0  # of all that is drawn: weights, data, noise, times


_NOBODY = NoPilot()


class ReportBuilder:
    """Collects what a step did, without reading anything back from the device."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._data_seconds = 0.0
        self._terms: dict[str, list[Tensor]] = {}
        self._images = 0
        self._held_back: list[str] = []
        self.grad_norms: dict[str, Tensor] = {}
        self.learning_rates: dict[str, float] = {}

    def batch(self, batches: Callable[[], Batch]) -> Batch:
        """The next batch, with the wait for it measured."""
        before = time.perf_counter()
        batch = batches()
        self._data_seconds += time.perf_counter() - before
        return batch

    def add(self, role: Role, loss: Loss, images: int) -> None:
        for name, value in loss.terms.items():
            self._terms.setdefault(f"{role.value}/{name}", []).append(value)
        self._images += images

    def leave_out(self, role: Role) -> None:
        """What a turn found that has changed nothing."""
        self._terms = {name: found for name, found in self._terms.items() if not name.startswith(f"{role.value}/")}
        del self.grad_norms[role.value]
        self._held_back.append(role.value)

    def build(self, step: int, num_shares: int, skipped: Sequence[Skipped]) -> StepReport:
        return StepReport(
            step=step,
            images=self._images * num_shares,
            terms={name: torch.stack(values).mean() for name, values in self._terms.items()},
            grad_norms=self.grad_norms,
            held_back=self._held_back,
            learning_rates=self.learning_rates,
            seconds=time.perf_counter() - self._started,
            data_seconds=self._data_seconds,
            skipped=skipped,
        )


def train(
    state: TrainState, plan: ParallelPlan, config: LoopConfig, hooks: HookList, pilot: Pilot | NoPilot = _NOBODY
) -> None:
    """Takes turns until `config.steps` updates of the learner are done, or a hook or the pilot wants to stop.

    Each turn has fresh data, split into microbatches by position in the global batch. Random numbers depend on
    (seed, step, who moves, position) alone. Saves nothing itself, reads no tensor back: those are hooks.
    """
    with hooks.running(state):
        pilot.on_start(state)
        while state.step < config.steps and not hooks.wants_stop() and pilot.steer(state):
            report, nets, learner = ReportBuilder(), state.networks(), state.objective.learner
            # Take turns.
            turns = state.objective.turns(state.step)  # AFM: discriminator, then generator, or both at once
            for number, turn in enumerate(turns):
                movers = {role: state.players[role] for role in turn}
                judges = {role: pilot.before_turn(state, role) for role in turn}
                batch = report.batch(state.next_batch)
                context = (config.seed, state.step, name_of_turn(turns, number))
                micros, told = microbatches(batch, plan, config.accumulation, context), nets.given(batch.conditions)
                # Learn, one after the other.
                for role, player in movers.items():
                    turn_of = partial(plan.turn_of, player, beside=tuple(movers.values()))
                    if len(micros) > 1:  # a first look
                        with turn_of(last=False):
                            for micro, draws in micros:
                                state.objective.survey(role, told, micro, draws, state.step)
                    for index, (micro, draws) in enumerate(micros):
                        with turn_of(last=index == len(micros) - 1):
                            loss = state.objective.loss(role, told, micro, draws, state.step)
                            plan.backward(player, loss.total / len(micros))
                        report.add(role, loss, len(micro) if role is learner else 0)
                # Move, all from where the turn began.
                for role, player in movers.items():
                    report.grad_norms[role.value] = plan.step(player, state.step, judges[role])
                    report.learning_rates[role.value] = player.learning_rate(state.step)
                    if (judge := judges[role]) is not None and judge.has_refused:
                        report.leave_out(role)
                    elif role is learner:  # move the averages
                        for average in state.averages.values():
                            average.update(player, state.step)
            state.step += 1
            completed = report.build(state.step, plan.num_data_ranks, state.data.take_skipped())
            state.images_seen += completed.images
            pilot.note(completed)
            hooks.after_step(state, completed)


def name_of_turn(turns: Sequence[Turn], number: int) -> str:
    """Who moves in it, and if they have moved in this step already, for which time."""
    turn, before = turns[number], turns[:number].count(turns[number])
    return "+".join(role.value for role in turn) + (f" {before + 1}" if before else "")


def microbatches(
    batch: Batch, plan: ParallelPlan, accumulation: int, context: Sequence[object]
) -> list[tuple[Batch, KeyedDraws]]:
    """This rank's batch as `accumulation` interleaved parts, each with the random numbers of its samples in a context.

    Sources give float32; from here on samples are in the precision of the networks.
    """
    batch = replace(batch, x=batch.x.to(plan.dtype))  # conditions follow where they are told (core/conditions.py)
    positions = Positions(plan.data_rank, plan.num_data_ranks, len(batch))
    parts = []
    for index in range(accumulation):
        part = positions.every(index, accumulation)
        draws = KeyedDraws(*context, positions=part, device=batch.x.device)
        parts.append((batch.every(index, accumulation), draws))
    return parts
