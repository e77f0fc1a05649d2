"""The table of docs/originals.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import PIL

from tests.tables import row, shortened, where

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
    lines = [_HEAD, f"{where(f'Pillow {PIL.__version__}')}\n", f"{good} of {len(verdicts)} cases ended well.\n"]
    ends = list(dict.fromkeys(["packed", "refused", *(verdict.came_to for _, verdict in verdicts)]))
    lines += [row("kind", "cases", *ends), row(*["---"] * (2 + len(ends)))]
    kinds = list(dict.fromkeys(case.kind for case, _ in verdicts))
    for kind in [*kinds, ""]:
        counts = Counter(verdict.came_to for case, verdict in verdicts if not kind or case.kind == kind)
        lines.append(row(kind or "all", counts.total(), *(counts[end] for end in ends)))
    for kind in kinds:
        lines += [f"\n## {kind}\n", row("what", "came to", "account or message"), row(*["---"] * 3)]
        lines += [
            row(case.name, verdict.came_to, shortened(verdict.words, 150))
            for case, verdict in verdicts if case.kind == kind
        ]
    return "\n".join(lines) + "\n"
