"""What became of a case, and which of it is well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Outcome(Enum):
    DONE = "done right"
    REFUSED = "refused"
    STOPPED = "stopped"
    TRACEBACK = "traceback"
    HANG = "hang"
    KILLED = "killed"
    CODE = "other code"
    MESSAGE = "no message, or several"
    WORK = "work not done"


GOOD = (Outcome.DONE, Outcome.REFUSED, Outcome.STOPPED)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    outcome: Outcome
    words: str = ""  # what it said, or what is amiss
    seconds: float = 0.0
    exit_seconds: float | None = None  # from a signal to the end of all ranks that were there
    restart_seconds: float | None = None  # from a signal to where the next start of the run goes on


def errors_in(told: str) -> list[str]:
    return [line for line in told.splitlines() if line.startswith("error")]


def of_an_end(code: int | None, told: str, root: Path, *, is_done: bool) -> Verdict:
    """Of a command that nobody disturbed. `told`: the standard errors of all ranks; None: it had to be killed."""
    words = shortened(told, root)
    if "Traceback (most recent call last)" in told:
        return Verdict(outcome=Outcome.TRACEBACK, words=words)
    if code is None:
        return Verdict(outcome=Outcome.HANG, words=words)
    if code == 0:
        return Verdict(outcome=Outcome.DONE if is_done else Outcome.WORK, words=words)
    if code == 2:
        return Verdict(outcome=Outcome.REFUSED if len(errors_in(told)) == 1 else Outcome.MESSAGE, words=words)
    return Verdict(outcome=Outcome.KILLED if code < 0 else Outcome.CODE, words=f"{code}: {words}")


def shortened(told: str, root: Path) -> str:
    """The first line of an error, else the last one."""
    lines: Sequence[str] = [line for line in told.splitlines() if line.strip()]
    chosen = (errors_in(told) or lines[-1:] or [""])[0]
    return chosen.removeprefix("error: ").replace(f"{root}/", "")[:300]
