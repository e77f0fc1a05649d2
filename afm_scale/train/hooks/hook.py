"""The protocol of a hook, the report it reads, and the list the loop talks to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...data.source import Skipped
from ..state import TrainState


@dataclass(frozen=True, slots=True)
class StepReport:
    """One completed step. Tensors are scalars on the device, of this rank; reading them waits for the device."""

    step: int  # completed updates of the learner, this one included
    images: int  # samples the learner saw in this step, over all ranks
    terms: Mapping[str, Tensor]  # "generator/transport" -> [], mean over this rank's microbatches
    grad_norms: Mapping[str, Tensor]  # "generator" -> [], before clipping, the same on every rank
    learning_rates: Mapping[str, float]  # "generator" -> the rate this step used
    seconds: float  # wall-clock time of the step as the host saw it
    data_seconds: float  # of which the loop waited for data
    skipped: Sequence[Skipped] = ()  # samples that this rank could not read
    held_back: Collection[str] = ()  # players whose update was not made: their terms and norms are left out


class Hook(Protocol):
    def on_start(self, state: TrainState) -> None:
        """Called before the first step (state may be a resumed one), and again where the run went back to.

        Nothing of the steps that are given up may be left: an `on_end` with a DivergenceError came before.
        """
        ...

    def after_step(self, state: TrainState, report: StepReport) -> None: ...

    def wants_stop(self) -> bool:
        """Whether the run should end here. Asked after every step; the answer must be the same on every rank."""
        ...

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        """Called once for each `on_start`, whatever happened. With an error others may be gone: no collectives then."""
        ...


class QuietHook:
    """Does nothing at each of the four moments; hooks override the ones they need."""

    def on_start(self, state: TrainState) -> None:
        pass

    def after_step(self, state: TrainState, report: StepReport) -> None:
        pass

    def wants_stop(self) -> bool:
        return False

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        pass


class HookList:
    """Hooks in the order they run."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = tuple(hooks)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._hooks)

    @contextmanager
    def running(self, state: TrainState) -> Iterator[None]:
        """Calls every on_start, and every on_end whatever happens in the block; the first error raised wins."""
        error: BaseException | None = None
        try:
            for hook in self._hooks:
                hook.on_start(state)
            yield
        except BaseException as caught:
            error = caught
        for hook in self._hooks:
            try:
                hook.on_end(state, error)
            except BaseException as caught:
                error = error or caught
        if error is not None:
            raise error

    def after_step(self, state: TrainState, report: StepReport) -> None:
        for hook in self._hooks:
            hook.after_step(state, report)

    def wants_stop(self) -> bool:
        return any([hook.wants_stop() for hook in self._hooks])  # a list: every hook is asked, on every rank
