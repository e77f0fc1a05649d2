"""The table of docs/ends.md."""

from __future__ import annotations

import os
import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import torch

from tests.tables import row

from . import configurations, kills
from .cases import all_cases
from .outcome import GOOD, Outcome, Verdict
from .record import Entry

_HEAD = """\
# How runs end

Bad configurations, shells, signals, surroundings, and kills at random instants, with one rank and with two: what each
came to. Well is work done right, exit code 2 with one message, or a stop by a signal: 75 with a whole checkpoint to go
on from, 128 + the signal's number where there is none yet. A run that was killed or stopped is started again, and its
weights at the end are bit for bit those of an undisturbed one. `tests/ends` says what is done; CI tries ten.

"""


def page(entries: Mapping[str, Entry], words: Sequence[str]) -> str:
    """Of cases by their names, in the order of the list of all; `words` are those of the command line."""
    cases = all_cases()
    order = {str(case): place for place, case in enumerate(cases)}
    verdicts = [(name, entries[name].verdict) for name in sorted(entries.keys() & order.keys(), key=order.__getitem__)]
    good = sum(verdict.outcome in GOOD for _, verdict in verdicts)
    lines = [
        _HEAD, f"    OMP_NUM_THREADS=1 python -m tests.ends {shlex.join(words)}\n",
        f"{_where([entries[name].commit for name, _ in verdicts])}\n",
        f"{good} of {len(verdicts)} cases ended well; there are {len(cases)}.\n",
    ]
    columns = [one for one in Outcome if one in GOOD or any(verdict.outcome is one for _, verdict in verdicts)]
    head = ("kind", "ranks", "cases", *(one.value for one in columns), "seconds each")
    lines += [row(*head), row(*["---"] * len(head))]
    kinds: dict[tuple[str, str], list[Verdict]] = {}
    for name, verdict in verdicts:
        kinds.setdefault(kind_of(name), []).append(verdict)
    everything = [verdict for _, verdict in verdicts]
    in_order = sorted(kinds.items(), key=lambda item: _place(item[0], order))
    for (kind, ranks), of_kind in [*in_order, (("all", ""), everything)]:
        counted = Counter(verdict.outcome for verdict in of_kind)
        seconds = sum(verdict.seconds for verdict in of_kind) / max(len(of_kind), 1)
        lines.append(row(kind, ranks, len(of_kind), *(counted[one] for one in columns), f"{seconds:.0f}"))
    lines += ["\n## What did not end well\n"]
    bad = [(name, verdict) for name, verdict in verdicts if verdict.outcome not in GOOD]
    if not bad:
        return "\n".join([*lines, "Nothing."]) + "\n"
    lines += [row("case", "came to", "message"), row(*["---"] * 3)]
    lines += [row(name, verdict.outcome.value, verdict.words[:160]) for name, verdict in bad]
    return "\n".join(lines) + "\n"


def kind_of(name: str) -> tuple[str, str]:
    """(the words before the last colon of its name that are its kind, its ranks)."""
    text, _, ranks = name.rpartition(", ranks: ")
    room, _, rest = text.partition(": ")
    if room in ("configurations", "kills"):
        room = f"{room}: {rest.partition(': ')[0]}"
    return room, ranks


def _place(kind: tuple[str, str], order: Mapping[str, int]) -> tuple[int, str]:
    return min(place for name, place in order.items() if kind_of(name)[0] == kind[0]), kind[1]


def _where(commits: Sequence[str]) -> str:
    cores = len(os.sched_getaffinity(0))
    date = datetime.now(timezone.utc).date()
    told = ", ".join(f"{one} ({count})" for one, count in Counter(commits).most_common())
    return (
        f"Commits (cases tried with them): {told}; {date}, {cores} cores of a {platform.machine()} CPU, which others "
        f"kept busy too, Python {platform.python_version()}, torch {torch.__version__}. Seeds: "
        f"{configurations.SEED} (configurations), {kills.SEED} (kills)."
    )
