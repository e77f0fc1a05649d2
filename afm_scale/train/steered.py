"""Training that may go back."""

from __future__ import annotations

from ..core.errors import DivergenceError
from ..core.words import STANDING, STEERING
from ..parallel.plan import ParallelPlan
from .hooks.hook import HookList
from .loop import LoopConfig, train
from .pilot.pilot import NoPilot, Pilot
from .state import TrainState


def train_steered(
    state: TrainState, plan: ParallelPlan, config: LoopConfig, hooks: HookList, pilot: Pilot | NoPilot
) -> None:
    """Trains as `train`, and where numbers are no longer good goes on from where the pilot goes back to, if it does."""
    while True:
        try:
            return train(state, plan, config, hooks, pilot)
        except DivergenceError as error:  # on all ranks alike
            with STANDING.during(STEERING):
                pilot.roll_back(state, error)
