"""Going back: where a run's numbers are no longer good, its newest good checkpoint, and on with other data.

The position in the data stays where the fault was met: the samples that led to it are not met again at those steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from ...checkpoint.falling_back import of_newest_whole
from ...checkpoint.manager import CheckpointManager
from ...checkpoint.manifest import visible_checkpoints
from ...core.errors import CheckpointError, DivergenceError
from ...core.ranges import Range
from ...core.typed import build
from ...parallel.agreement import from_rank_0
from ...parallel.plan import ParallelPlan
from ..hooks.events import EventLog
from ..restore import restore
from ..state import Scalars, TrainState
from .memory import Memory, RolledBack


@dataclass(frozen=True, kw_only=True)
class RollBackConfig:
    """A run whose numbers are no longer good does not end, but goes back to its newest good checkpoint."""

    limit: Annotated[int, Range(1, 1000)] = 3  # times in a run; once more ends it
    # what follows: the same settings again, or those of the next phase if there is one
    then: Literal["go_on", "next_phase"] = "go_on"


class GoneBadError(DivergenceError):
    """The quality says that the run is no longer good; not every checkpoint of it is."""

    def __init__(self, message: str, not_after: int) -> None:
        super().__init__(message)
        self.not_after = not_after  # the newest step that was found good


class RollingBack:
    """Collective in all it does."""

    def __init__(
        self, config: RollBackConfig, manager: CheckpointManager, plan: ParallelPlan, events: EventLog
    ) -> None:
        self.config = config
        self._manager = manager
        self._plan = plan
        self._events = events

    def restore(self, state: TrainState, error: DivergenceError) -> None:
        """The state is that of the checkpoint, with the fault's position in the data, and remembers the fault.

        Of whole checkpoints the newest that is good; one that a roll-back went to, and that led to this fault before
        another was saved, comes after the older ones. Later ones are removed. Raises DivergenceError if the limit is
        reached, or nothing is there to go back to.
        """
        fault = build(Scalars, state.scalars())
        before = () if fault.pilot is None else fault.pilot.roll_backs
        if len(before) >= self.config.limit:
            raise DivergenceError(
                f"{error}. It went back to a checkpoint {len(before)} times before, with other data each time, and the "
                "limit is reached (pilot.roll_back.limit): look for the cause in the settings"
            ) from error
        self._go_to_newest(state, error, before)
        kept = state.pilot or Memory()
        back = RolledBack(step=fault.step, to=state.step)
        noise = {} if fault.pilot is None else fault.pilot.noise
        scalars = build(Scalars, state.scalars())
        state.load_scalars(replace(
            scalars, data=fault.data, pilot=replace(kept, roll_backs=(*before, back), noise=kept.noise or noise)
        ))
        self._events.write("act", step=fault.step, act="roll_back", to=state.step, why=str(error))
        self._manager.forget_after(state.step)

    def save(self, state: TrainState) -> None:
        """In the place of the checkpoint that was gone back to: a run that is killed now remembers that it did."""
        self._manager.save(state.step, state.tensors(self._plan), state.scalars())
        self._manager.wait()

    def _go_to_newest(self, state: TrainState, error: DivergenceError, before: Sequence[RolledBack]) -> None:
        bound = error.not_after if isinstance(error, GoneBadError) else state.step
        found = from_rank_0(self._plan.rank, lambda: good(visible_checkpoints(self._manager.folder), bound, before))

        def put(checkpoint: Path) -> None:
            restore(state, self._plan, checkpoint)

        def on_torn(checkpoint: Path, reason: str) -> None:
            self._events.write("torn", folder=str(checkpoint), reason=reason)
            self._manager.note(checkpoint, whole=False)

        try:
            of_newest_whole(self._manager.folder, found, put, on_torn, do="It cannot be gone back to")
        except CheckpointError as missing:
            raise DivergenceError(
                f"{error}. pilot.roll_back has nothing to go back to: {missing}; save more often, by "
                "checkpoint.every_steps"
            ) from error


def good(found: Sequence[tuple[int, Path]], bound: int, before: Sequence[RolledBack]) -> tuple[Path, ...]:
    """The checkpoints to go back to, of (step, path) newest first, best first.

    Args:
        bound: the newest step that may be good.
        before: the roll-backs so far. Where the last one went to the newest of these, nothing was saved since.
    """
    paths = [(step, path) for step, path in found if step <= bound]
    if paths and before and paths[0][0] == before[-1].to:
        paths = [*paths[1:], paths[0]]
    return tuple(path for _, path in paths)
