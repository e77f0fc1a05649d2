"""Where a run starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..checkpoint.manager import CheckpointManager
from ..checkpoint.manifest import resolve_checkpoint
from ..parallel.plan import ParallelPlan
from ..train.hooks.events import EventLog
from ..train.restore import restore, restore_weights
from ..train.state import TrainState
from .config import FolderConfig


def start(
    state: TrainState, plan: ParallelPlan, manager: CheckpointManager, config: FolderConfig, events: EventLog,
    look: Callable[[Path], None] = lambda checkpoint: None,
) -> str:
    """Puts the state where the run goes on, and says in one line where that is. In this order:

    1. this run's own newest complete checkpoint;
    2. `resume_from`: the whole state of another run's checkpoint;
    3. `initialise_from`: the weights alone, at step 0;
    4. scratch.

    `look` is called with a checkpoint of the first two before it is loaded, and raises if it must not be gone on from.
    Raises CheckpointError if the checkpoint chosen is torn or of another model.
    """
    torn: list[str] = []
    own = manager.latest(on_torn=lambda path, reason: torn.append(f"{path.name}: {reason}"))
    if own is not None:
        look(own)
        restore(state, plan, own)
        where = f"resumed at step {state.step} from {own}"
    elif config.resume_from is not None:
        checkpoint = resolve_checkpoint(config.resume_from)
        look(checkpoint)
        restore(state, plan, checkpoint)
        where = f"resumed at step {state.step} from {checkpoint}"
    elif config.initialise_from is not None:
        checkpoint = resolve_checkpoint(config.initialise_from)
        restore_weights(state, plan, checkpoint)
        where = f"new run with the weights of {checkpoint}"
    else:
        where = "new run from scratch"
    # Loading was collective; only now may rank 0 fail by itself, at a file of its own.
    described = plan.describe({role.value: player.module for role, player in state.players.items()})
    events.write("start", step=state.step, where=where, world_size=plan.world_size, torn=torn, plan=described)
    return where + "".join(f"; passed over torn {reason}" for reason in torn)
