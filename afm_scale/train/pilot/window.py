"""The terms of the steps between two evaluations, summed without waiting for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...parallel.plan import ParallelPlan
from ..hooks.hook import StepReport
from .memory import Value, Window


class Signals:
    """Sums of every term and gradient norm, on the device; read at an evaluation and at a save."""

    def __init__(self, plan: ParallelPlan) -> None:
        self._plan = plan
        self._steps = 0
        self._sums: dict[str, Tensor] = {}  # [] float64

    def add(self, report: StepReport) -> None:
        """Counts a step all of whose updates were made."""
        if report.held_back:
            return
        self._steps += 1
        norms = {f"{player}/grad_norm": norm for player, norm in report.grad_norms.items()}
        for name, value in {**report.terms, **norms}.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def window(self) -> Window:
        """Collective: the sums as all ranks have them, which they go on from. Waits for the device."""
        if not self._sums:
            return Window(steps=self._steps)
        reduced = self._plan.mean_(torch.stack(tuple(self._sums.values())))
        self._sums = dict(zip(self._sums, reduced.unbind(), strict=True))
        return Window(steps=self._steps, sums=dict(zip(self._sums, map(_finite, reduced.tolist()), strict=True)))

    def means(self) -> dict[str, Value]:
        """Collective: the means over the steps and the ranks; the next window begins."""
        window = self.window()
        self.begin(Window())
        return {name: None if value is None else value / window.steps for name, value in window.sums.items()}

    def begin(self, window: Window) -> None:
        """Goes on from what a checkpoint kept."""
        self._steps = window.steps
        self._sums = {
            name: torch.tensor(
                math.nan if value is None else value, dtype=torch.float64, device=self._plan.device
            )
            for name, value in window.sums.items()
        }


def _finite(value: float) -> Value:
    return value if math.isfinite(value) else None
