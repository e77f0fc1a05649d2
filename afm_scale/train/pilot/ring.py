"""The ring of discriminators: D's weights of earlier steps, kept so that one of them can come back.

    RUN/discriminators/step_00001200/     a checkpoint with the tensors of one player

Which steps are in the ring is state (`Memory.ring`); the files are a superset. What a checkpoint counts on is on the
disk before the checkpoint is, and stays as long as one of the newest checkpoints counts on it: a run that was killed
and goes on finds what it had.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from ...checkpoint.manager import CheckpointConfig, CheckpointManager
from ...checkpoint.manifest import folder_name, read_manifest, visible_checkpoints
from ...checkpoint.names import SPARE, of_optimizer
from ...checkpoint.tensors import compare_on_all, load_into
from ...core.errors import CheckpointError, ConfigError, TornError
from ...core.ranges import LARGEST_WHOLE, Count, Range
from ...core.run_folder import RunFolder
from ...core.typed import Mistake
from ...core.types import Role
from ...parallel.plan import ParallelPlan
from ..hooks.events import EventLog
from ..state import TrainState, scalars_in


@dataclass(frozen=True, kw_only=True)
class RingConfig:
    """Which earlier discriminators are kept: more of the last steps than of those long ago, and the first one."""

    every_steps: Count  # how often one is kept
    keep: Annotated[int, Range(2, 1000)] = 16  # at most so many
    most_bytes: Annotated[int, Range(1, LARGEST_WHOLE)] | None = None  # of all of them on the disk; null: any number
    optimizer: bool = True  # with its optimizer's state; false: the state that D has stays when its weights come back


def thinned(steps: Sequence[int], now: int, keep: int, every: int) -> tuple[int, ...]:
    """At most `keep` (2 or more) of these steps, in order: the oldest, the newest, and ages in between evenly by ratio.

    An age is `now` minus the step, plus `every`. While there are too many, the one goes whose neighbours' ages have the
    least ratio. So, thinned as they come, with n so far, no age is more than max(2.5, n ** (2 / (keep - 1))) times the
    next smaller one.
    """
    left = sorted(set(steps))
    while len(left) > keep:
        ages = [now - step + every for step in left]
        holes = [older / newer for older, newer in zip(ages, ages[2:], strict=False)]
        del left[1 + min(range(len(holes)), key=holes.__getitem__)]
    return tuple(left)


class Ring:
    """Every method is called on all ranks, but those that say so."""

    def __init__(
        self, config: RingConfig, folder: RunFolder, plan: ParallelPlan, events: EventLog, *, keep_last: int,
        description: Mapping[str, Any],
    ) -> None:
        """Makes the folder. `keep_last`: how many of the run's checkpoints must find what they count on."""
        self._config = config
        self._checkpoints = folder.checkpoints
        self._keep_last = keep_last
        self._plan = plan
        self._events = events
        self._now: Collection[int] = ()
        self._counted: deque[Collection[int]] = deque((), maxlen=2)  # on by the saves that may be under way
        self._manager = CheckpointManager(
            folder.discriminators, CheckpointConfig(every_steps=config.every_steps), rank=plan.rank,
            world_size=plan.world_size, description=description, wanted=self._wanted,
        )

    def on_start(self, state: TrainState) -> None:
        """Where the run starts or goes on. Raises ConfigError if what is kept cannot hold two."""
        self._manager.wait()
        self._manager.clear_leftovers()
        self._now = () if state.pilot is None else state.pilot.ring
        self._counted.append(self._now)
        self._most(state.player_tensors(self._plan, Role.DISCRIMINATOR, optimizer=self._config.optimizer))

    def keep(self, state: TrainState) -> None:
        """At a step boundary: keeps the discriminator if it is time to, in the background, and thins out."""
        memory = state.pilot
        assert memory is not None
        came_back = any(reload.step == state.step for reload in memory.reloads)  # by hand: it is not of this step
        is_kept = memory.ring[-1:] == (state.step,)
        if state.step == 0 or state.step % self._config.every_steps or came_back or is_kept:
            return
        tensors = state.player_tensors(self._plan, Role.DISCRIMINATOR, optimizer=self._config.optimizer)
        # After going back to an earlier step, what was kept of later ones is of steps that are taken again.
        steps = [step for step in memory.ring if step < state.step]
        self._now = thinned([*steps, state.step], state.step, self._most(tensors), self._config.every_steps)
        state.pilot = replace(memory, ring=self._now)
        self._manager.save(state.step, tensors, {"step": state.step, "images_seen": state.images_seen})

    def before_save(self, state: TrainState) -> None:
        """Before a checkpoint: what it will count on is on the disk."""
        assert state.pilot is not None
        self._counted.append(state.pilot.ring)
        self._manager.wait()

    def put(self, state: TrainState, step: int) -> None:
        """The discriminator becomes that of an earlier step, with its optimizer's state if that was kept.

        Raises TornError, noted and on all ranks alike, having changed nothing, if it is not whole.
        """
        self._manager.wait()
        path = self._manager.folder / folder_name(step)
        try:
            compare_on_all(path)
            kept = read_manifest(path).tensors
        except TornError as error:
            self._events.write("torn", folder=str(path), reason=str(error))
            raise
        has_optimizer = any(name.startswith(of_optimizer(Role.DISCRIMINATOR)) for name in kept)
        tensors = state.player_tensors(self._plan, Role.DISCRIMINATOR, optimizer=has_optimizer)
        load_into(path, tensors, spare=SPARE)
        state.take_player(self._plan, Role.DISCRIMINATOR, tensors)

    def settle(self) -> None:
        """Until this rank's thread no longer writes. Not collective."""
        self._manager.settle()

    def _most(self, tensors: Mapping[str, Tensor]) -> int:
        """How many the ring may hold."""
        if self._config.most_bytes is None:
            return self._config.keep
        each = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
        if self._config.most_bytes < 2 * each:
            raise ConfigError(
                f"pilot.ring.most_bytes={self._config.most_bytes}: one discriminator has {each} bytes, and the ring "
                f"holds two at least; set {2 * each} or more, pilot.ring.optimizer=false, or most_bytes=null"
            )
        return min(self._config.keep, self._config.most_bytes // each)

    def _wanted(self) -> set[int]:
        """The steps whose files stay. Rank 0's thread asks, in the middle of a save."""
        # In this order: what a save counts on is forgotten here after its checkpoint has got its name.
        wanted = {step for steps in (self._now, *tuple(self._counted)) for step in steps}
        for _, path in visible_checkpoints(self._checkpoints)[: self._keep_last]:
            wanted |= set(counted_on(path))
        return wanted


def counted_on(checkpoint: Path) -> tuple[int, ...]:
    """The steps that are in the ring of a run's checkpoint; none if it cannot be read."""
    try:
        memory = scalars_in(read_manifest(checkpoint)).pilot
    except (CheckpointError, Mistake):
        return ()
    return () if memory is None else memory.ring
