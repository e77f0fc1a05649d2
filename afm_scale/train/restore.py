"""Puts what a checkpoint holds into the state of a run: all of it, or the weights alone. Collective."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.names import SPARE, of_average, of_role, under
from ..checkpoint.tensors import compare_on_all, first_mismatch, load_into, read_tensors
from ..core.errors import CheckpointError
from ..core.types import PUBLISHED
from ..parallel.agreement import agreed
from ..parallel.plan import ParallelPlan
from .state import TrainState, scalars_in


def restore(state: TrainState, plan: ParallelPlan, checkpoint: Path) -> None:
    """The run goes on as if it had never stopped. Raises TornError, or CheckpointError if it does not fit."""
    tensors = state.tensors(plan)
    scalars = load_into(checkpoint, tensors, spare=SPARE, scalars=scalars_in)
    state.take(plan, tensors)
    state.load_scalars(scalars)


def restore_weights(state: TrainState, plan: ParallelPlan, checkpoint: Path) -> None:
    """The weights of the players and of the published average; step, optimizers and data stay where they are.

    Averages that the objective keeps beside that one begin at the learner's weights, as in a new run.
    Raises, on all ranks alike, TornError if the checkpoint is not whole, CheckpointError if it is of another model.
    """
    compare_on_all(checkpoint)
    learner = state.players[state.objective.learner]
    modules = [(of_role(role), player, player.module) for role, player in state.players.items()]
    modules += [
        (of_average() if name == PUBLISHED else of_role(state.objective.learner), learner, average.network)
        for name, average in state.averages.items()
    ]
    for prefix, player, module in modules:
        with agreed():
            given = under(prefix, read_tensors(checkpoint, prefix, is_compared=True))
        mismatch = first_mismatch(given, player.moving(plan.state_dict(module)))
        if mismatch is not None:
            raise CheckpointError(
                f"{checkpoint} is of another model: {prefix}{mismatch}; change run.initialise_from or the model"
            )
        plan.initialise(module, given.items(), still=player.still)
