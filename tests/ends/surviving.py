"""python -m tests.ends.surviving: ranks that are killed and runs that are stopped under a launcher that starts again.

100 times SIGKILL to a rank and 100 times SIGTERM to the launcher, at random instants, over 1, 2 and 4 ranks: whether
the run ends with the weights of an undisturbed one, how long its ranks take to end and the next start to go on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", NO_COLOR="1", MPLBACKEND="Agg")

from tests.tables import row  # noqa: E402

from .__main__ import try_all  # noqa: E402
from .kills import SEED, SURVIVING, Case, drawn  # noqa: E402
from .outcome import GOOD, Verdict  # noqa: E402
from .record import Record  # noqa: E402

COUNTS = {1: (34, 34), 2: (33, 33), 4: (33, 33)}  # by ranks: SIGKILL, SIGTERM


def cases() -> list[Case]:
    """All 200, those of few ranks first."""
    return [case for layout in SURVIVING for case in drawn(layout, *COUNTS[layout.ranks], stopping=("TERM",))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ends.surviving", description=__doc__.partition("\n")[2])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="a case in N (default: every one)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time: times want a quiet machine")
    parser.add_argument("--minutes", type=float, default=1e9, metavar="N", help="begin no case after this time")
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl", help="as of python -m tests.ends")
    options = parser.parse_args()
    record = Record(options.record)
    chosen = cases()[::options.every]
    try_all([case for case in chosen if str(case) not in record.entries], options.jobs, options.minutes, record)
    found = {case: record.entries[str(case)].verdict for case in chosen if str(case) in record.entries}
    print(table(found))
    return int(any(verdict.outcome not in GOOD for verdict in found.values()))


def table(found: dict[Case, Verdict]) -> str:
    """Rows of what the cases came to, with their seed."""
    head = ("signal", "ranks", "cases", "ended well", "to exit, median", "maximum", "to restart, median", "maximum")
    lines = [row(*head), row(*["---"] * len(head))]
    for name in ("KILL", "TERM"):
        for layout in SURVIVING:
            of_kind = [one for case, one in found.items() if (case.signal, case.layout) == (name, layout)]
            if of_kind:
                good = sum(one.outcome in GOOD for one in of_kind)
                exits = _of([one.exit_seconds for one in of_kind])
                restarts = _of([one.restart_seconds for one in of_kind])
                lines.append(row(f"SIG{name}", layout.ranks, len(of_kind), good, *exits, *restarts))
    return "\n".join([*lines, f"\nSeconds. Seed: {SEED}."])


def _of(seconds: Sequence[float | None]) -> tuple[str, str]:
    """Median and maximum; of a signal after the last save there is no other start."""
    known = [one for one in seconds if one is not None]
    return (f"{statistics.median(known):.1f}", f"{max(known):.1f}") if known else ("", "")


if __name__ == "__main__":
    sys.exit(main())
