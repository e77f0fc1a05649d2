"""A run that is killed or stopped at a random instant, and started again, has the weights of an undisturbed one.

To be extended: `Layout` says how many processes there are and who starts them, `drawn` draws instants and signals for
one. A layout is a line in `LAYOUTS` with its counts in `COUNTS`; `launched.Launchers` has a `nodes`.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from afm_scale.checkpoint.manifest import newest_complete, resolve_checkpoint
from afm_scale.checkpoint.tensors import digest
from tests.program import SMALL_AFM

from .launchers import LAUNCHER, Launchers
from .outcome import Outcome, Verdict, errors_in, shortened
from .ranks import Job, Ranks

SEED = 18
RUN = ("loop.steps=24", "checkpoint.every_steps=4", "hooks.metrics.every_steps=1", "parallel.device=cpu",
       "parallel.timeout_seconds=10", "parallel.precision=fp64", "run.folder=run")
PATIENCE_SECONDS = 120.0  # for ranks to end after a signal, before they are taken to hang
STOPPING = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "XCPU")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`start(words, root)` starts `python -m afm_scale WORDS` there; a signal goes to one of these sets of ranks."""

    ranks: int
    start: Callable[[Sequence[str], Path], Job]
    killed: tuple[tuple[int, ...], ...]
    stopped: tuple[tuple[int, ...], ...]
    name: str = ""


LAYOUTS = (
    Layout(ranks=1, start=lambda words, root: Ranks(words, root, 1), killed=((0,),), stopped=((0,),)),
    Layout(ranks=2, start=lambda words, root: Ranks(words, root, 2), killed=((0,), (1,), (0, 1)),
           stopped=((0, 1),)),  # launchers pass a signal to all
    Layout(name="launcher", ranks=2, start=lambda words, root: Launchers(words, root, ranks=2),
           killed=((0,), (1,), (LAUNCHER,)), stopped=((LAUNCHER,), (LAUNCHER, 0, 1))),
)
FOUR = Layout(ranks=4, start=lambda words, root: Ranks(words, root, 4), killed=((0,), (1,), (3,), (1, 2)),
              stopped=((0, 1, 2, 3),))
SURVIVING = tuple(
    Layout(name="launcher that starts again", ranks=ranks,
           start=lambda words, root, ranks=ranks: Launchers(words, root, ranks=ranks, restarts=3),
           killed=tuple((rank,) for rank in range(ranks)), stopped=((LAUNCHER,),))
    for ranks in (1, 2, 4)
)
"""Those of `python -m tests.ends.surviving`: a killed rank is the launcher's business, until the run is done."""
COUNTS: Mapping[tuple[str, int], tuple[int, int]] = {("", 1): (50, 25), ("", 2): (50, 25), ("launcher", 2): (12, 14)}
"""Of each layout: (SIGKILL, other signals)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    signal: str
    share: float  # of the time that an undisturbed run takes, from its process's start
    number: int
    layout: Layout
    to: tuple[int, ...]  # the ranks that are sent it

    def __str__(self) -> str:
        layout = self.layout
        names = ("the launcher" if one == LAUNCHER else f"rank {one}" for one in self.to)
        to = f" to {', '.join(names)}" if layout.ranks > 1 else ""
        kind = f"{self.signal}{f' by {layout.name}' if layout.name else ''}"
        return f"kills: {kind}: at {self.share:.3f} of a run{to}, number {self.number}, ranks: {layout.ranks}"

    def run(self, root: Path) -> Verdict:
        wanted, seconds = UNDISTURBED.of(self.layout)
        number = signal.Signals[f"SIG{self.signal}"]
        job = self.layout.start(["train", *SMALL_AFM, *RUN], root)
        job.end(until=job.began + self.share * seconds)
        there, sent = job.running(), time.time()
        job.send(number, self.to)
        exit_seconds = _until_gone(job, there)
        code, told = job.end(), job.told()
        verdict = _amiss(code, told, root) or self._started_again(code, told, number, root, wanted)
        restarts = [at - sent for at in _starts(root) if at > sent]
        return replace(
            verdict, exit_seconds=round(exit_seconds, 2), restart_seconds=round(restarts[0], 2) if restarts else None
        )

    def _started_again(self, code: int | None, told: str, number: int, root: Path, wanted: str) -> Verdict:
        """Until the run is done, with the weights that are wanted."""
        if code != 0:
            whole = newest_complete(root / "run" / "checkpoints") is not None
            ends = {75} if whole else {128 + number, -number}
            if code not in ({1, 75, 76, -number} if number == signal.SIGKILL else ends):
                words = f"{code}, {'a' if whole else 'no'} whole checkpoint: {shortened(told, root)}"
                return Verdict(outcome=Outcome.CODE, words=words)
            job = self.layout.start(["train", *SMALL_AFM, *RUN], root)
            code, told = job.end(), job.told()
            second = _amiss(code, told, root)
            if second is not None or code != 0:
                words = f"the second start: {code}: {shortened(told, root)}"
                return second or Verdict(outcome=Outcome.CODE, words=words)
        found = digest(resolve_checkpoint(root / "run"))
        return Verdict(outcome=Outcome.DONE if found == wanted else Outcome.WORK, words=shortened(told, root))


def _until_gone(job: Job, there: set[int]) -> float:
    """Seconds until none of these processes is left."""
    began = time.monotonic()
    while there & job.running() and time.monotonic() - began < PATIENCE_SECONDS:
        if job.end(until=time.monotonic() + 0.02) is not None:
            break
    return time.monotonic() - began


def _starts(root: Path) -> list[float]:
    """When the run was begun or gone on with, on the system's clock."""
    path = root / "run" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [datetime.fromisoformat(event["time"]).timestamp() for event in events if event["kind"] == "start"]


def _amiss(code: int | None, told: str, root: Path) -> Verdict | None:
    outcome = (
        Outcome.HANG if code is None else Outcome.TRACEBACK if "Traceback (most recent call last)" in told
        else Outcome.MESSAGE if len(errors_in(told)) > 1 else None
    )
    return None if outcome is None else Verdict(outcome=outcome, words=f"{code}: {shortened(told, root)}")


class Undisturbed:
    """Runs that nobody disturbs, one for each layout."""

    def __init__(self) -> None:
        self._found: dict[Layout, tuple[str, float]] = {}
        self._lock = Lock()

    def of(self, layout: Layout) -> tuple[str, float]:
        """The state at the end, and the seconds from the process's start to its end."""
        with self._lock:
            if layout not in self._found:
                with TemporaryDirectory(prefix="undisturbed_") as name:
                    job = layout.start(["train", *SMALL_AFM, *RUN], Path(name))
                    code, seconds = job.end(), time.monotonic() - job.began
                    assert code == 0, job.told()
                    self._found[layout] = digest(resolve_checkpoint(Path(name) / "run")), seconds
            return self._found[layout]


UNDISTURBED = Undisturbed()


def drawn(
    layout: Layout, kills: int, stops: int, seed: int = SEED, stopping: Sequence[str] = STOPPING
) -> list[Case]:
    """SIGKILL and signals that stop, each at an instant from the first moment to the last."""
    chance = random.Random(f"{seed} {layout.name} {layout.ranks}")
    names = ["KILL"] * kills + list(islice(cycle(stopping), stops))
    return [
        Case(signal=name, share=chance.random(), number=number, layout=layout,
             to=chance.choice(layout.killed if name == "KILL" else layout.stopped))
        for number, name in enumerate(names)
    ]


def cases() -> list[Case]:
    return [case for layout in LAYOUTS for case in drawn(layout, *COUNTS[layout.name, layout.ranks])]
