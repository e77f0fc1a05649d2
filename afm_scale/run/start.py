"""Where a run starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..checkpoint.falling_back import candidates, of_newest_whole
from ..checkpoint.manager import CheckpointManager
from ..checkpoint.manifest import read_manifest, visible_checkpoints, without_sums
from ..core.errors import CheckpointError, TornError
from ..parallel.agreement import agreed, from_rank_0
from ..parallel.plan import ParallelPlan
from ..train.hooks.events import EventLog
from ..train.restore import restore, restore_weights
from ..train.state import TrainState
from .config import FolderConfig

Torn = list[tuple[Path, str]]

_START_OVER = (
    "Nothing was changed. Put one of them right; or, to start over, choose another run.folder or move {folder} away"
)
_ANOTHER = "Name another run or another checkpoint"


def start(
    state: TrainState, plan: ParallelPlan, manager: CheckpointManager, config: FolderConfig, events: EventLog,
    look: Callable[[Path], None] = lambda checkpoint: None,
    begin: Callable[[TrainState, ParallelPlan], str] | None = None,
) -> str:
    """Puts the state where the run goes on, and says in one line where that is. In this order:

    1. this run's own newest whole checkpoint;
    2. `resume_from`: the whole state of another run's checkpoint;
    3. `initialise_from`: the weights alone, at step 0;
    4. scratch.

    `begin` is the third for a checkpoint that is no run's (`run/beginning.py`). `look` is called with a checkpoint of
    the first two before it is loaded, and raises if it must not be gone on from.
    Torn ones are passed over, said and noted. Raises CheckpointError if the checkpoint chosen is of another model, or
    if there are some and none is whole: then nothing has been written but the notes, and nothing removed.
    """
    torn: Torn = []
    try:
        where = _put(state, plan, manager, config, look, begin, torn)
        manager.clear_leftovers()
    finally:
        # Loading was collective; only now may rank 0 fail by itself, at a file of its own.
        for path, reason in torn:
            events.write("torn", folder=str(path), reason=reason)
    described = plan.describe({role.value: player.module for role, player in state.players.items()})
    passed_over = [f"{path.name}: {reason}" for path, reason in torn]
    events.write("start", step=state.step, where=where, world_size=plan.world_size, torn=passed_over, plan=described)
    return where + "".join(f"; passed over torn {reason}" for reason in passed_over)


def _put(
    state: TrainState, plan: ParallelPlan, manager: CheckpointManager, config: FolderConfig,
    look: Callable[[Path], None], begin: Callable[[TrainState, ParallelPlan], str] | None, torn: Torn,
) -> str:
    def go_on(state: TrainState, plan: ParallelPlan, checkpoint: Path) -> None:
        with agreed():
            try:
                look(checkpoint)
            except CheckpointError as error:  # it could not be looked at
                raise TornError(str(error)) from error
        restore(state, plan, checkpoint)

    def use(path: Path, put: Callable[[TrainState, ParallelPlan, Path], None], do: str) -> Path:
        """The checkpoint that was put into the state."""

        def used(checkpoint: Path) -> Path:
            put(state, plan, checkpoint)
            return checkpoint

        def on_torn(checkpoint: Path, reason: str) -> None:
            torn.append((checkpoint, reason))
            if path == manager.folder:
                manager.note(checkpoint, whole=False)

        return of_newest_whole(path, from_rank_0(plan.rank, lambda: candidates(path)), used, on_torn, do=do)

    own = manager.folder
    if from_rank_0(plan.rank, lambda: bool(visible_checkpoints(own))):
        checkpoint = use(own, go_on, _START_OVER.format(folder=own))
        manager.note(checkpoint, whole=True)
        where = f"resumed at step {state.step} from {checkpoint}"
    elif config.resume_from is not None:
        checkpoint = use(config.resume_from, go_on, _ANOTHER)
        where = f"resumed at step {state.step} from {checkpoint}"
    elif begin is not None:
        return begin(state, plan)
    elif config.initialise_from is not None:
        checkpoint = use(config.initialise_from, restore_weights, _ANOTHER)
        where = f"new run with the weights of {checkpoint}"
    else:
        return "new run from scratch"
    return where + without_sums(read_manifest(checkpoint))
