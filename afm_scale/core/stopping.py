"""Signals that ask this process to stop: one place has the handlers, from the first thing it does to the last.

Whoever knows what is to be done is told. From the start to the first step, and again after the last, nothing is under
way that would be lost: the process ends at once, even where its main thread waits for another rank, with one line and
`EXIT_STOPPED_BY_SIGNAL` if a whole checkpoint of its run is there, else with 128 + the signal's number. In between
`train/hooks/stop.py` has taken over. A signal that was ignored when the process began (nohup) stays so.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .errors import EXIT_STOPPED_BY_SIGNAL
from .screen import note_at_once, open_closed

_NAMES = "TERM INT HUP QUIT USR1 USR2 XCPU ALRM VTALRM PROF IO PWR STKFLT".split()
_OF_TIMERS = ("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO")
SIGNALS = tuple(signal.Signals[f"SIG{name}"] for name in _NAMES if f"SIG{name}" in signal.Signals.__members__)
"""All that end a process by themselves, but for SIGKILL, for those of a fault, for those that Python ignores (SIGPIPE,
SIGXFSZ) and for those without a name. launchers/torchrun.py passes them on; none of them ends a run that has taken a
step without saving."""

# Schedulers signal a launcher and its workers, and the launcher passes it on: one wish that arrives twice.
SAME_WISH_SECONDS = 0.25
_PATIENCE_SECONDS = 10.0  # of ranks that do not speak: launchers end those that are left, and rank 0 has to be heard
_UNKNOWN_SECONDS = 20.0  # for it to become known which run this is: after the imports

Receive = Callable[[int], None]
Newest = Callable[[], "Path | None"]


class Stopping:
    """What becomes of a signal: the handlers and, while nobody has taken over, the end of the process.

    Python runs handlers in the main thread alone, between two of its own instructions: not while that waits inside of
    torch. So a thread is woken too; whichever is first passes the signal on, once.
    """

    def __init__(self) -> None:
        self._receive: Receive = self._end_soon
        self._received, self._received_at = 0, 0.0
        self._known = threading.Event()
        self._newest: Newest | None = None
        self._speaks = True
        self._before: list[Callable[[], None]] = []
        self._lock = threading.RLock()  # reentrant: a handler may interrupt another
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._handlers = {
            number: signal.signal(number, self._in_main_thread) for number in SIGNALS if _is_free(number)
        }
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the launcher holds them until there are handlers
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()

    def know(self, newest: Newest, *, speaks: bool) -> None:
        """Which run this is: `newest` is its newest whole checkpoint. One rank speaks for all."""
        self._newest, self._speaks = newest, speaks
        self._known.set()
        self.await_the_end()

    def before_the_end(self, action: Callable[[], None]) -> None:
        """To be called before the process ends by a signal, while nobody has taken over."""
        self._before.append(action)

    def take_over(self, receive: Receive) -> None:
        """From now on `receive` is told of every signal, in any thread."""
        self.await_the_end()
        self._receive = receive

    def give_back(self) -> None:
        self._receive = self._end_soon

    def undo(self) -> None:
        """Handlers are what they were."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def forget(self) -> None:
        """In a forked process: its parent's signals are no matter of its own."""
        signal.set_wakeup_fd(-1)
        for number in self._handlers:
            signal.signal(number, signal.SIG_DFL)

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        self._pass_on()

    def _watch(self) -> None:
        while True:
            select.select([self._reader], [], [])
            if not self._pass_on():
                return

    def _pass_on(self) -> bool:
        """False: there is nothing more to come."""
        with self._lock:
            try:
                numbers = os.read(self._reader, 4096)
            except BlockingIOError:  # another has passed it on
                return True
            for number in numbers:
                if number in self._handlers:
                    self._receive(number)
            return 0 not in numbers

    def _end_soon(self, number: int) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
            threading.Thread(target=self._end, name="end by a signal", daemon=True).start()
        elif now - self._received_at > SAME_WISH_SECONDS:
            os._exit(128 + number)

    def await_the_end(self) -> None:
        while self._received:
            time.sleep(1)

    def _end(self) -> None:
        self._known.wait(_UNKNOWN_SECONDS)
        name, code = signal.Signals(self._received).name, 128 + self._received
        try:
            newest = None if self._newest is None else self._newest()
            if newest is not None:
                code = EXIT_STOPPED_BY_SIGNAL
                line = f"stopped by {name}; {newest} is whole: run the same command again to go on from it"
            elif self._newest is not None:
                line = f"stopped by {name} before there was a checkpoint: nothing is there to go on from"
            else:
                line = f"stopped by {name} while starting, before it was known which run this is"
            if self._speaks:
                note_at_once(line)
            else:
                time.sleep(_PATIENCE_SECONDS)
            for action in self._before:
                action()
        finally:
            os._exit(code)


def _is_free(number: signal.Signals) -> bool:
    """Not if it is ignored, nor if somebody waits for it: a library in C, or, of timers, a profiler or a test."""
    found = signal.getsignal(number)
    return found is signal.SIG_DFL or found not in (signal.SIG_IGN, None) and number.name not in _OF_TIMERS


_stopping: Stopping | None = None  # of this process


def begin(words: Sequence[str]) -> None:
    """The first thing that the program does, in the main thread. `words` are those of the command line.

    Training alone has something to save; other commands end as Python's processes do.
    """
    global _stopping
    open_closed()  # else a pipe of signals gets the number that is written to as the screen
    if words[:1] != ["train"]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    elif _stopping is None:
        _stopping = Stopping()
        os.register_at_fork(after_in_child=_forget)


def know(newest: Newest, *, speaks: bool) -> None:
    """Which run this process is: see `Stopping.know`. Of no effect where nothing has begun, as is the next."""
    if _stopping is not None:
        _stopping.know(newest, speaks=speaks)


def await_the_end() -> None:
    """Does not return if a signal is about to end this process: what it has met since is a consequence of that."""
    if _stopping is not None:
        _stopping.await_the_end()


def decided(code: int) -> None:
    """How this process ends is settled: from now on a signal ends it so, at once and without a word."""
    if _stopping is not None:
        _stopping.take_over(lambda number: os._exit(code))


def before_the_end(action: Callable[[], None]) -> None:
    if _stopping is not None:
        _stopping.before_the_end(action)


@contextmanager
def taken_over(receive: Receive) -> Iterator[None]:
    """While the block lasts, `receive` is told of every signal, in whichever thread.

    Where nothing has begun, in a test or a program that calls the package, the handlers are there just as long.
    """
    stopping = Stopping() if _stopping is None else _stopping
    stopping.take_over(receive)
    try:
        yield
    finally:
        stopping.give_back()
        if stopping is not _stopping:
            stopping.undo()


def _forget() -> None:
    global _stopping
    if _stopping is not None:
        _stopping.forget()
        _stopping = None
