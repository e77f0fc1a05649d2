"""The table of docs/originals.md."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone

import PIL

from tests.program import ROOT

from .cases import Case, Verdict

_HEAD = """\
# Odd originals

Odd archives, folders and images, each handed to `make_shards`. Well is what ends with the right images under the right
labels, every file of the source in the account of `dataset.json` (packed, changed and how, left out and why) and the
counts adding up; or with exit code 2 and one message. The files are counted by other means than the program's.
`tests/originals` says what is done and what is wanted; CI tries a part.

    OMP_NUM_THREADS=1 python -m tests.originals --write docs/originals.md
"""


def page(verdicts: Sequence[tuple[Case, Verdict]]) -> str:
    good = sum(verdict.is_good for _, verdict in verdicts)
    lines = [_HEAD, f"{_where()}\n", f"{good} of {len(verdicts)} cases ended well.\n"]
    ends = list(dict.fromkeys(["packed", "refused", *(verdict.came_to for _, verdict in verdicts)]))
    lines += [_row("kind", "cases", *ends), _row(*["---"] * (2 + len(ends)))]
    kinds = list(dict.fromkeys(case.kind for case, _ in verdicts))
    for kind in [*kinds, ""]:
        counts = Counter(verdict.came_to for case, verdict in verdicts if not kind or case.kind == kind)
        lines.append(_row(kind or "all", counts.total(), *(counts[end] for end in ends)))
    for kind in kinds:
        lines += [f"\n## {kind}\n", _row("what", "came to", "account or message"), _row(*["---"] * 3)]
        lines += [
            _row(case.name, verdict.came_to, _shortened(verdict.words))
            for case, verdict in verdicts if case.kind == kind
        ]
    return "\n".join(lines) + "\n"


def _where() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    return (
        f"Commit {commit}, {datetime.now(timezone.utc).date()}, {cores} cores of a {platform.machine()} CPU, Python "
        f"{platform.python_version()}, Pillow {PIL.__version__}."
    )


def _shortened(words: str, limit: int = 150) -> str:
    words = words.removeprefix("error: ")
    return words if len(words) <= limit else f"{words[:limit - 3]}..."


def _row(*cells: object) -> str:
    texts = (str(cell).encode(errors="backslashreplace").decode() for cell in cells)
    return f"| {' | '.join(text.replace('|', chr(92) + '|').replace(chr(10), ' ') for text in texts)} |"
