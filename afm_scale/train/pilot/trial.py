"""A trial: from the same state a short branch with each of some discriminators; the best one wins, all are discarded.

A branch is a part of the run itself, with the same data and random numbers: branches differ by the discriminator alone.
Afterwards the state is what it was, bit for bit: weights, averages, optimizers, the objective's own, the data position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ...core.errors import DivergenceError, TornError
from ...core.typed import build
from ...parallel.plan import ParallelPlan
from ..state import Scalars, TrainState
from .memory import Value
from .ring import Ring


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What came of one discriminator."""

    to: int | None  # the step it is of; None: the present one
    slope: Value  # of the quality, per update; None: it lost, having diverged or not being whole
    qualities: tuple[Value, ...]  # where the branch began, and at its evaluations


class Trial:
    """Collective; every rank finds the same."""

    def __init__(
        self, ring: Ring, plan: ParallelPlan, *, updates: int, evaluations: int, quality: str,
        measure: Callable[[TrainState], Mapping[str, float]], train_until: Callable[[TrainState, int], None],
    ) -> None:
        """
        Args:
            updates, evaluations: of a branch; the latter evenly spaced, the last one at its end.
            quality: the figure that is to fall, of those that `measure` gives.
            train_until: takes the steps up to this one, with nobody who watches or steers.
        """
        self._ring = ring
        self._plan = plan
        self._lengths = sorted({math.ceil(updates * number / evaluations) for number in range(1, evaluations + 1)})
        self._quality = quality
        self._measure = measure
        self._train_until = train_until

    def __call__(self, state: TrainState, candidates: Sequence[int]) -> tuple[tuple[Branch, ...], int | None]:
        """The branches, that of the present discriminator first, and the step of the best one: None for the present.

        Of equal ones the present one wins, then the newest.
        """
        snapshot = Snapshot(state, self._plan)
        begins = self._quality_where_it_begins(state)
        branches = []
        for to in (None, *sorted(candidates, reverse=True)):
            branches.append(self._branch(state, to, begins))
            snapshot.restore(state)
        winner = min(branches, key=lambda branch: math.inf if branch.slope is None else branch.slope)
        return tuple(branches), winner.to

    def _quality_where_it_begins(self, state: TrainState) -> Value:
        """The newest evaluation, if it is of this step; measured if not."""
        points = () if state.pilot is None else state.pilot.points
        if points and points[-1].step == state.step and self._quality in points[-1].figures:
            return points[-1].figures[self._quality]
        return self._found(state)

    def _branch(self, state: TrainState, to: int | None, begins: Value) -> Branch:
        first, qualities = state.step, [begins]
        try:
            if to is not None:
                self._ring.put(state, to)
            for length in self._lengths:
                self._train_until(state, first + length)
                qualities.append(self._found(state))
        except (DivergenceError, TornError):  # on all ranks alike
            qualities.append(None)
        return Branch(to=to, slope=slope((0, *self._lengths), qualities), qualities=tuple(qualities))

    def _found(self, state: TrainState) -> Value:
        value = self._measure(state)[self._quality]
        return value if math.isfinite(value) else None


def slope(updates: Sequence[int], qualities: Sequence[Value]) -> Value:
    """Of the straight line nearest to the qualities in least squares, per update.

    Where the branch began may be no number: what is left counts. None if any other is not finite, or fewer than two.
    """
    points = [(x, y) for x, y in zip(updates, qualities, strict=False) if y is not None]
    missing = len(updates) - len(points) - (qualities[0] is None)
    if missing or len(points) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


class Snapshot:
    """The state of a run, kept in the host's memory. Collective."""

    def __init__(self, state: TrainState, plan: ParallelPlan) -> None:
        self._plan = plan
        self._tensors = {
            name: _local(tensor).to("cpu", copy=True) for name, tensor in state.tensors(plan).items()
        }
        self._scalars = build(Scalars, state.scalars())

    @torch.no_grad()
    def restore(self, state: TrainState) -> None:
        """The state is as it was when the snapshot was taken."""
        tensors = state.tensors(self._plan)
        for name, tensor in tensors.items():
            _local(tensor).copy_(self._tensors[name])
        state.take(self._plan, tensors)
        state.load_scalars(self._scalars)


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
