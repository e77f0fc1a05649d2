"""What training makes of its device: the operations that its steps ask for, beside the device's peak."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ...core.screen import note
from ...estimate.devices import peak_flops
from ...objectives.objective import ObjectiveConfig
from ..state import TrainState

CountOperations = Callable[[ObjectiveConfig, int], float]
"""Of step number `int` of an objective as it is in force, for each image of the learner's batch."""

_UNITS = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
_SHARE_OF_TIME = 0.01  # that may go into counting while the objective stays the same


class Utilisation:
    """Model FLOP utilisation: operations that the method asks for, whatever is computed again, over the bf16 peak.

    In any precision, as `benchmark step` says it. Where no peak is known, as of a CPU, the operations a second.
    """

    def __init__(
        self, count: CountOperations, device: torch.device, ranks: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count, self._ranks, self._clock = count, ranks, clock
        self._peak = peak_flops(device)
        self._objective: ObjectiveConfig | None = None
        self._operations: float | None = None  # for each image; None: they cannot be counted
        self._counted_at = self._took = 0.0

    def describe(self, state: TrainState, images_per_second: float) -> str:
        """Of one rank, at this many images a second over all ranks, in a few words; none if it is not known.

        Counts, in this thread, if the objective is another one, and now and then because some ask more or less as they
        go on.
        """
        objective, now = state.objective.config, self._clock()
        if objective is not self._objective or now - self._counted_at > self._took / _SHARE_OF_TIME:
            self._objective, self._operations = objective, self._counted(objective, state.step)
            self._counted_at = self._clock()
            self._took = self._counted_at - now
        if self._operations is None:
            return ""
        achieved = self._operations * images_per_second / self._ranks
        if self._peak is not None:
            return f"utilisation {achieved / self._peak:.1%}"
        unit, name = next(one for one in _UNITS if achieved >= one[0] or one is _UNITS[-1])
        return f"achieved {achieved / unit:.3g} {name}/s a rank"

    def _counted(self, objective: ObjectiveConfig, step: int) -> float | None:
        try:
            return self._count(objective, step)
        except Exception as error:  # a loss may read a number back, which shapes have not: nothing shown ends a run
            reason = str(error).partition("\n")[0] or type(error).__name__
            note(f"the operations of a step cannot be counted, so no utilisation is shown: {reason}")
            return None
