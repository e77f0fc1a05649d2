"""The table of docs/ends.md."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone

import torch

from tests.program import ROOT

from . import configurations, kills
from .cases import Case, all_cases
from .outcome import GOOD, Outcome, Verdict

_HEAD = """\
# How runs end

Bad configurations, shells, signals, surroundings, and kills at random instants, with one rank and with two: what each
came to. Well is work done right, exit code 2 with one message, or a stop by a signal: 75 with a whole checkpoint to go
on from, 128 + the signal's number where there is none yet. A run that was killed or stopped is started again, and its
weights at the end are bit for bit those of an undisturbed one. `tests/ends` says what is done; CI tries ten.

"""


def page(verdicts: Sequence[tuple[Case, Verdict]], words: Sequence[str]) -> str:
    good = sum(verdict.outcome in GOOD for _, verdict in verdicts)
    lines = [
        _HEAD, f"    OMP_NUM_THREADS=1 python -m tests.ends {shlex.join(words)}\n", f"{_where()}\n",
        f"{good} of {len(verdicts)} cases ended well; there are {len(all_cases())}.\n",
    ]
    columns = [one for one in Outcome if one in GOOD or any(verdict.outcome is one for _, verdict in verdicts)]
    lines += [_row("kind", "ranks", "cases", *(one.value for one in columns)), _row(*["---"] * (3 + len(columns)))]
    counts: dict[tuple[str, str], Counter[Outcome]] = {}
    for case, verdict in verdicts:
        counts.setdefault(kind_of(case), Counter())[verdict.outcome] += 1
    for (kind, ranks), counted in counts.items():
        lines.append(_row(kind, ranks, counted.total(), *(counted[one] for one in columns)))
    total = sum(counts.values(), Counter())
    lines.append(_row("all", "", total.total(), *(total[one] for one in columns)))
    lines += ["\n## What did not end well\n", _row("case", "came to", "message"), _row(*["---"] * 3)]
    lines += [_row(case, verdict.outcome.value, verdict.words[:160])
              for case, verdict in verdicts if verdict.outcome not in GOOD]
    return "\n".join(lines) + "\n"


def kind_of(case: Case) -> tuple[str, str]:
    """(the words before the last colon of its name that are its kind, its ranks)."""
    text, _, ranks = str(case).partition(", ranks: ")
    room, _, rest = text.partition(": ")
    if room == "configurations":
        room = f"{room}: {rest.partition(': ')[0]}"
    if room == "kills":
        room = f"{room}: {rest.split()[0]}"
    return room, ranks[:1] if ranks else str(case).rpartition("ranks: ")[2][:1]


def _where() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    date = datetime.now(timezone.utc).date()
    return (
        f"Commit {commit}, {date}, {cores} cores of a {platform.machine()} CPU, which others may have used too, "
        f"Python {platform.python_version()}, torch {torch.__version__}. Seeds: "
        f"{configurations.SEED} (configurations), {kills.SEED} (kills)."
    )


def _row(*cells: object) -> str:
    texts = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(texts)} |"
