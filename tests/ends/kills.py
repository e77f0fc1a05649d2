"""A run that is killed or stopped at a random instant, and started again, has the weights of an undisturbed one."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from afm_scale.checkpoint.manifest import newest_complete, resolve_checkpoint
from afm_scale.checkpoint.tensors import digest
from tests.program import SMALL_AFM

from .outcome import Outcome, Verdict, errors_in, shortened
from .ranks import Ranks

SEED = 18
COUNTS = {"KILL": 100, "TERM": 13, "INT": 13, "HUP": 12, "USR1": 12}
EVERY_WITH_TWO_RANKS = 5
STARTS = 4  # of a command, at most, until it ends
RUN = ("loop.steps=24", "checkpoint.every_steps=4", "hooks.metrics.every_steps=1", "parallel.device=cpu",
       "parallel.timeout_seconds=10", "parallel.precision=fp64", "run.folder=run")


@dataclass(frozen=True, kw_only=True)
class Case:
    signal: str
    share: float  # of the time that an undisturbed run takes, from its process's start
    number: int
    ranks: int = 1
    to: tuple[int, ...] = (0,)  # the ranks that are sent it

    def __str__(self) -> str:
        to = f" (to {', '.join(map(str, self.to))})" if self.ranks > 1 else ""
        return f"kills: {self.signal} at {self.share:.3f} of a run, number {self.number}, ranks: {self.ranks}{to}"

    def run(self, root: Path) -> Verdict:
        wanted, seconds = undisturbed(self.ranks)
        number = signal.Signals[f"SIG{self.signal}"]
        code: int | None = 1
        for start in range(STARTS):
            ranks = Ranks(["train", *SMALL_AFM, *RUN], root, self.ranks)
            if start == 0:
                ranks.end(until=ranks.began + self.share * seconds)
                ranks.send(number, self.to)
            code, told = ranks.end(), ranks.told()
            words = f"start {start + 1}: {code}: {shortened(told, root)}"
            if code is None:
                return Verdict(outcome=Outcome.HANG, words=words)
            if "Traceback (most recent call last)" in told:
                return Verdict(outcome=Outcome.TRACEBACK, words=words)
            if len(errors_in(told)) > 1:
                return Verdict(outcome=Outcome.MESSAGE, words=words)
            if code == 0:
                found = digest(resolve_checkpoint(root / "run"))
                return Verdict(outcome=Outcome.DONE if found == wanted else Outcome.WORK, words=words)
            whole = newest_complete(root / "run" / "checkpoints") is not None
            is_stop = code == 75 and whole or code == 128 + number and not whole
            if start > 0 or not (is_stop or self.signal == "KILL" and code in (-number, 1)):
                return Verdict(outcome=Outcome.KILLED if code < 0 else Outcome.CODE, words=words)
        return Verdict(outcome=Outcome.CODE, words=f"{STARTS} starts, the last with {code}")


@cache
def undisturbed(ranks: int) -> tuple[str, float]:
    """The state at the end, and the seconds from the process's start to its end."""
    with TemporaryDirectory(prefix="undisturbed_") as name:
        run = Ranks(["train", *SMALL_AFM, *RUN], Path(name), ranks)
        code, seconds = run.end(), time.monotonic() - run.began
        assert code == 0, run.told()
        return digest(resolve_checkpoint(Path(name) / "run")), seconds


def cases() -> list[Case]:
    chance = random.Random(SEED)
    found = []
    for name, count in COUNTS.items():
        for number in range(count):
            ranks = 2 if number % EVERY_WITH_TWO_RANKS == EVERY_WITH_TWO_RANKS - 1 else 1
            to = chance.choice(((0,), (1,), (0, 1))) if name == "KILL" else (0, 1)  # launchers pass signals to all
            found.append(Case(signal=name, share=chance.random(), number=number, ranks=ranks,
                              to=to if ranks == 2 else (0,)))
    return found
