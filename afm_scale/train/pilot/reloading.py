"""Brings an earlier discriminator back: the one that is named, or the best of a trial. Collective."""

from __future__ import annotations

from dataclasses import replace

from ...core.errors import TornError
from ..hooks.events import EventLog
from ..state import TrainState
from .acts import ReloadDiscriminator, TryDiscriminators
from .memory import Reload
from .ring import Ring
from .trial import Branch, Trial


class Reloading:
    """The ring of a run, and what the pilot does with it."""

    def __init__(self, ring: Ring, trial: Trial | None, events: EventLog) -> None:
        """`trial` may be missing where nobody asks for one."""
        self.ring = ring
        self._trial = trial
        self._events = events

    def do(
        self, act: ReloadDiscriminator | TryDiscriminators, state: TrainState, *, or_older: bool = True
    ) -> tuple[int | None, tuple[Branch, ...]]:
        """The step whose discriminator came back, None if the present one stays, and the branches of a trial.

        It is remembered either way. Where the files of the one that was chosen are damaged an older one may come back,
        or, without `or_older`, a TornError is raised, on all ranks alike.
        """
        branches: tuple[Branch, ...] = ()
        if isinstance(act, ReloadDiscriminator):
            chosen: int | None = act.to
        else:
            branches, chosen = self._tried(act, state)
        if chosen is not None and or_older:
            chosen = self._put(state, chosen)
        elif chosen is not None:
            self.ring.put(state, chosen)
        assert state.pilot is not None
        state.pilot = replace(state.pilot, reloads=(*state.pilot.reloads, Reload(step=state.step, to=chosen)))
        if chosen is not None:
            self._events.write("act", step=state.step, act="reload_discriminator", to=chosen, why=act.why)
        return chosen, branches

    def _tried(self, act: TryDiscriminators, state: TrainState) -> tuple[tuple[Branch, ...], int | None]:
        assert self._trial is not None and state.pilot is not None
        branches, chosen = self._trial(state, act.candidates)
        self._events.write(
            "trial", step=state.step, why=act.why, chosen=chosen,
            candidates=[
                {"step": branch.to, "slope": branch.slope, "quality": list(branch.qualities)} for branch in branches
            ],
        )
        return branches, chosen

    def _put(self, state: TrainState, chosen: int) -> int | None:
        """Of those that are whole, the newest that is no newer; the others leave the ring."""
        assert state.pilot is not None
        for step in sorted((kept for kept in state.pilot.ring if kept <= chosen), reverse=True):
            try:
                self.ring.put(state, step)
                return step
            except TornError:
                state.pilot = replace(state.pilot, ring=tuple(kept for kept in state.pilot.ring if kept != step))
        return None
