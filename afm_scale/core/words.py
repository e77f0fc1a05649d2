"""What a rank says of itself while it works: which process it is, and where in the program it stands."""

from __future__ import annotations

import json
import linecache
import math
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal

from .files import read_regular

_PACKAGE = f"{Path(__file__).resolve().parents[1]}{os.sep}"
_WAITING = f"torch{os.sep}distributed{os.sep}distributed_c10d.py"
_NOWHERE = "no line of afm_scale"
_MOST_FRAMES = 24

ProcessState = Literal["gone", "stopped", "computing", "waiting", "unknown"]


IN_BACKGROUND = "in the background"  # the description of groups that no main thread uses
OF_COLLECTIVES = 3.0  # a step has several of them


@dataclass(frozen=True)
class Act:
    """What a rank is at. It hangs if it takes no step and begins no other act for longer than the limit."""

    name: str
    limit: float | None = None  # seconds; None: OF_COLLECTIVES times the time limit of collectives


WORKING = Act("work", math.inf)  # of commands that take no steps
STARTING = Act("the start", 3600.0)
STEP = Act("a step")
COMPILING = Act("a compilation", 3600.0)
EVALUATING = Act("an evaluation", 6 * 3600.0)
DRAWING = Act("drawing samples", 3600.0)
SAVING = Act("a save", 3600.0)
STEERING = Act("an act of the pilot", 3600.0)
REPORTING = Act("the report", 6 * 3600.0)


@dataclass(frozen=True, kw_only=True)
class Word:
    """The last thing that is known of a rank."""

    count: int  # of its words; one that does not grow is of a rank that is silent
    step: int | None  # completed steps, in a run that trains
    act: str  # what it is at
    acting: float  # seconds since it has taken a step, or begun or ended an act
    limit: float | None  # of them
    place: str  # where its main thread stands
    waits: bool  # whether that is seen to be a wait for other ranks
    motionless: float  # seconds at that place
    host: str
    pid: int
    process: str  # of all processes of this host, which one has the pid
    stack: list[str]  # of its main thread, the innermost line last

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: bytes) -> Word:
        return cls(**json.loads(text))

    def __str__(self) -> str:
        step = "before its first step" if self.step is None else f"at step {self.step}"
        act = "" if self.act in (STEP.name, WORKING.name) else f", in {self.act}"
        return f"{step}{act}, in {self.place}"

    def is_overdue(self, limit_of_collectives: float) -> bool:
        """Whether its process lives but gets nowhere."""
        return self.acting > self.allowed(limit_of_collectives)

    def allowed(self, limit_of_collectives: float) -> float:
        """Seconds that its act may take without progress."""
        return OF_COLLECTIVES * limit_of_collectives if self.limit is None else self.limit

    def state(self) -> ProcessState:
        """What the system says of its main thread; unknown on another host, and where there is no /proc."""
        if self.host != socket.gethostname() or not Path("/proc/self/stat").exists() or not self._is_of_our_system():
            return "unknown"
        if _identity(self.pid) != self.process:
            return "gone"
        letter = _stat(self.pid)[0]
        known: dict[str, ProcessState] = {"Z": "gone", "X": "gone", "T": "stopped", "t": "stopped", "R": "computing"}
        return known.get(letter, "waiting")

    def kill(self) -> None:
        """Ends a process that cannot end itself, if it is one of this host and still the same."""
        if self.state() not in ("gone", "unknown") and self.pid != os.getpid():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except OSError:  # of another user, or gone by now
                pass

    def _is_of_our_system(self) -> bool:
        """Containers may have a host's name in common, but then number their processes by themselves."""
        return self.process.split()[0] == _namespace()


class Standing:
    """Where this process's main thread is, looked at from another thread."""

    def __init__(self) -> None:
        self.step: int | None = None
        self._count = 0
        self._seen: object = None
        self._since = self._progressed = 0.0
        self._failed: tuple[str, bool] | None = None
        self._act = WORKING
        self._turns = 0  # acts that were begun or ended
        self._at: tuple[int | None, int] = None, -1

    @contextmanager
    def during(self, act: Act) -> Iterator[None]:
        """What the main thread is at while the block lasts."""
        before = self.begin(act)
        try:
            yield
        finally:
            self.begin(before)

    def begin(self, act: Act) -> Act:
        """From now on; returns what it was at."""
        before, self._act = self._act, act
        self._turns += 1
        return before

    def forgive(self, seconds: float) -> None:
        """Does not count a time in which the whole process was stopped."""
        self._since += seconds
        self._progressed += seconds

    def failed_in(self, trace: TracebackType | None) -> None:
        """From now on the main thread is where an error was met: in a wait for others."""
        places = [(frame, number) for frame, number in traceback.walk_tb(trace) if _is_ours(frame)]
        self._failed = (_line(*places[-1]) if places else _NOWHERE), True

    def word(self, now: float) -> Word:
        """To be asked for often: how long the main thread has been motionless is counted between the looks."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        seen = (id(frame), None if frame is None else frame.f_lasti, self.step)
        if seen != self._seen and self._failed is None:
            self._seen, self._since = seen, now
        act, at = self._act, (self.step, self._turns)
        if at != self._at:
            self._at, self._progressed = at, now
        self._count += 1
        place, waits = self._failed or _place(frame)
        return Word(
            count=self._count, step=self.step, act=act.name, acting=round(now - self._progressed, 1), limit=act.limit,
            place=place, waits=waits, motionless=round(now - self._since, 1), host=socket.gethostname(),
            pid=os.getpid(), process=_identity(os.getpid()), stack=_stack(frame),
        )


STANDING = Standing()  # of this process, as its main thread is


def _place(frame: FrameType | None) -> tuple[str, bool]:
    """The innermost line of this package, and whether it is seen to wait for other ranks."""
    waits = False
    while frame is not None:
        if _is_ours(frame):
            line = _line(frame, frame.f_lineno)
            return line, waits or ".wait()" in line
        waits = waits or frame.f_code.co_filename.endswith(_WAITING)
        frame = frame.f_back
    return _NOWHERE, waits


def _stack(frame: FrameType | None) -> list[str]:
    """As far as it is read without opening a file: the text of this package's lines, names of all others."""
    lines: list[str] = []
    while frame is not None and len(lines) < _MOST_FRAMES:
        code = frame.f_code
        name = f"{code.co_filename} line {frame.f_lineno}, in {code.co_name}"
        lines.append(_line(frame, frame.f_lineno) if _is_ours(frame) else name)
        frame = frame.f_back
    return lines[::-1]


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _line(frame: FrameType, number: int | None) -> str:
    """`number` is None between two lines of a frame that runs."""
    name = frame.f_code.co_filename
    text = linecache.getline(name, number or 0).partition("  #")[0].strip()
    return f"{name.removeprefix(_PACKAGE)} line {number}, `{text}`"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: a letter for the state first; X where there is no process."""
    try:
        return read_regular(Path(f"/proc/{pid}/stat")).decode(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ["X", *["0"] * 30]


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "-"


def _identity(pid: int) -> str:
    return f"{_namespace()} {pid} {_stat(pid)[19]}"  # field 22: when the process started
