"""python -m tests.ends: bad configurations, shells, signals, surroundings and kills, and how each run of them ended.

Well is work done right (a killed run's weights are bit for bit an undisturbed one's), exit code 2 with one message, or
a stop: 75 with a whole checkpoint to go on from, 128 + the signal's number where there is none yet.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", NO_COLOR="1", MPLBACKEND="Agg")

from .cases import Case, all_cases  # noqa: E402
from .outcome import GOOD, Verdict  # noqa: E402
from .record import Record  # noqa: E402
from .table import page  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ends", description=__doc__.partition("\n")[2])
    parser.add_argument("--only", default="", metavar="WORDS",
                        help="cases whose line has all of these words; a | stands between alternatives")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="the table of all cases")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="cases at a time")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="a case in N (default: every one)")
    parser.add_argument("--skip", type=int, default=0, metavar="M", help="with --every: begin at case M")
    parser.add_argument("--minutes", type=float, default=1e9, metavar="N", help="begin no case after this time")
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl",
                        help="what each came to is added there; cases that stand there are not tried again")
    parser.add_argument("--again", action="store_true", help="with --record: try those that did not end well again")
    parser.add_argument("--list", action="store_true", help="name the cases and try none")
    options = parser.parse_args()
    alternatives = [one.split() for one in options.only.split("|")]
    chosen = [case for case in all_cases() if any(all(word in str(case) for word in one) for one in alternatives)]
    if options.list:
        print(*chosen, sep="\n")
        return 0
    chosen, record = chosen[options.skip % options.every::options.every], Record(options.record)
    known = {name for name, entry in record.entries.items() if entry.is_good or not options.again}
    try_all([case for case in chosen if str(case) not in known], options.jobs, options.minutes, record)
    bad = sum(not entry.is_good for entry in record.entries.values())
    print(f"{len(record.entries)} cases, {len(record.entries) - bad} of them ended well")
    if options.write is not None:
        options.write.write_text(page(record.entries, sys.argv[1:]), encoding="utf-8")
    return int(bad > 0)


def try_all(cases: Sequence[Case], jobs: int, minutes: float, record: Record) -> None:
    until = time.monotonic() + 60 * minutes
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(cases), desc="trying", unit="case", disable=None) as bar:
        def one(case: Case) -> None:
            verdict = judge(case, until)
            if verdict is None:
                return
            record.add(case, verdict)
            bar.update()
            if verdict.outcome not in GOOD:
                bar.clear()
                print(f"{verdict.outcome.value}: {case}: {verdict.words[:300]}", flush=True)

        list(pool.map(one, cases))


def judge(case: Case, until: float = float("inf")) -> Verdict | None:
    """What became of a case, in a folder of its own; None if it is too late to begin."""
    began = time.monotonic()
    if began > until:
        return None
    with tempfile.TemporaryDirectory(prefix="ends_", ignore_cleanup_errors=True) as name:
        return replace(case.run(Path(name)), seconds=time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
