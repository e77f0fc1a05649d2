"""The table of docs/damage.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from tests.tables import row, shortened, where

from .trial import GOOD, Case, Outcome, Verdict

_HEAD = """\
# Bad and odd files

Every kind of file that is loaded, damaged in every way that was thought of, and handed to the commands that load it.
Well is what ends in work done right, which means with the result of good files or of the next older checkpoint, or
with exit code 2 and one message that names the file; and what changes nothing else. Good files that are odd are among
them: those must be used. `tests/damage` says what is done and what is wanted; CI tries a part.

    python -m tests.damage --every 3 --write docs/damage.md     (in a third of the cases all kinds are)

"""


def page(verdicts: Sequence[tuple[Case, Verdict]], num_all: int) -> str:
    """Counts by kind and outcome, and a row for each of the cases that were tried."""
    good = sum(verdict.outcome in GOOD for _, verdict in verdicts)
    part = f", of {num_all} that there are" if len(verdicts) < num_all else ""
    lines = [_HEAD, f"{where(f'torch {torch.__version__}')}\n", f"{good} of {len(verdicts)} cases ended well{part}.\n"]
    columns = [one for one in Outcome if one in GOOD or any(verdict.outcome is one for _, verdict in verdicts)]
    lines += [row("kind of file", "cases", *(one.value for one in columns)), row(*["---"] * (2 + len(columns)))]
    kinds = list(dict.fromkeys(case.kind for case, _ in verdicts))
    for kind in kinds:
        counts = Counter(verdict.outcome for case, verdict in verdicts if case.kind == kind)
        lines.append(row(kind, counts.total(), *(counts[one] for one in columns)))
    counts = Counter(verdict.outcome for _, verdict in verdicts)
    lines.append(row("all", counts.total(), *(counts[one] for one in columns)))
    for kind in kinds:
        lines += [f"\n## {kind}\n", row("what was done", "to", "came to", "message"), row(*["---"] * 4)]
        lines += [
            row(case.name, case.door.name, verdict.outcome.value, shortened(verdict.words, 100))
            for case, verdict in verdicts if case.kind == kind
        ]
    return "\n".join(lines) + "\n"
