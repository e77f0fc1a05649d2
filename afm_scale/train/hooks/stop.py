"""Stopping all ranks at the same step: for a signal that reached one of them, or an error that only one of them met.

Each rank holds one number: 0 to go on, a signal's number, or `_FAILED`. After every step the largest one over the ranks
is asked for, and read after the next step, so nothing waits for the network or the device. It travels over gloo and
the CPU: the device's own queue may be many steps behind the host.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack

import torch
import torch.distributed as dist

from ...core.screen import note_at_once
from ...core.stopping import SAME_WISH_SECONDS, taken_over
from ...core.words import STANDING, STARTING, STEP
from ...parallel.agreement import agree
from ...parallel.plan import ParallelPlan
from ..failures import Failures
from ..state import TrainState
from .events import EventLog
from .hook import QuietHook, StepReport

_FAILED = 1000  # above every signal's number: a failure wins


class StopHook(QuietHook):
    """The last hook of the list, so that it sees the errors the others met in this step.

    The first signal only leaves a note; the loop ends at a step boundary and the checkpoint hook saves. A second one
    (not an echo of the first) ends the process at once, with the exit code 128 + its number and without saving.
    """

    def __init__(self, plan: ParallelPlan, failures: Failures, events: EventLog) -> None:
        self._failures = failures
        self._events = events
        self._group = dist.new_group(backend="gloo") if plan.world_size > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None
        self._signals = ExitStack()
        self._received, self._received_at = 0, 0.0
        self._agreed = 0
        self._told = False
        self._before = STARTING

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that all ranks stopped for: the process should exit with EXIT_STOPPED_BY_SIGNAL."""
        return signal.Signals(self._agreed) if 0 < self._agreed < _FAILED else None

    def on_start(self, state: TrainState) -> None:
        STANDING.step, self._before = state.step, STANDING.begin(STEP)
        self._read()  # what was asked before the run went back
        self._signals.enter_context(taken_over(self._receive))
        self._agree(state)  # the other hooks may have failed to start on one rank

    def after_step(self, state: TrainState, report: StepReport) -> None:
        STANDING.step = state.step
        self._read()
        if not self._agreed:
            self._ask()
        self._act(state)

    def wants_stop(self) -> bool:
        return self._agreed > 0

    def on_end(self, state: TrainState, error: BaseException | None) -> None:
        try:
            if error is None:  # other hooks' on_end may have failed on one rank, and the last signal is not yet read
                self._read()
                self._agree(state)
                STANDING.begin(self._before)  # after an error it is told what this rank was at
        finally:
            self._signals.close()

    def _receive(self, number: int) -> None:
        now = time.monotonic()
        if self._received and now - self._received_at > SAME_WISH_SECONDS:
            note_at_once("ended at once by a second signal: what came after the newest checkpoint is lost")
            os._exit(128 + number)
        if not self._received:
            self._received, self._received_at = number, now

    def _agree(self, state: TrainState) -> None:
        self._ask()
        self._read()
        self._act(state)

    def _ask(self) -> None:
        mine = _FAILED if self._failures.first else max(self._received, self._agreed)
        if self._group is None:
            self._agreed = mine
            return
        value = torch.tensor(mine)
        self._pending = value, dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _read(self) -> None:
        if self._pending is not None:
            value, work = self._pending
            self._pending = None
            work.wait()
            self._agreed = int(value)

    def _act(self, state: TrainState) -> None:
        if self._agreed == _FAILED:
            if self._group is not None:
                agree(self._failures.first)
            assert self._failures.first is not None
            raise self._failures.first
        if self.signal and not self._told:
            self._told = True
            with self._failures.kept():
                self._events.write("signal", signal=self.signal.name, step=state.step)
