"""python -m tests.damage: hands bad and odd files, over a thousand, to the commands that load them.

Every case is a copy of good files of which one is harmed, in a folder of its own beside another run. It has come out
well if the work was done right (the result is that of good files, or of the next older checkpoint), or if the command
ended with exit code 2 and one message that names the file, and if nothing else has changed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", NO_COLOR="1", MPLBACKEND="Agg")

from .cases import all_cases  # noqa: E402
from .originals import Originals  # noqa: E402
from .table import page  # noqa: E402
from .trial import GOOD, Case, Trials, Verdict  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__.partition("\n")[2])
    parser.add_argument("--only", default="", metavar="WORDS",
                        help="cases whose line has all of these words; a | stands between alternatives")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="the table of all cases")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="cases at a time")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="a case in N (default: every one)")
    parser.add_argument("--skip", type=int, default=0, metavar="M", help="with --every: begin at case M")
    parser.add_argument("--list", action="store_true", help="name the cases and try none")
    options = parser.parse_args()
    alternatives = [one.split() for one in options.only.split("|")]
    chosen = [case for case in all_cases() if any(all(word in str(case) for word in one) for one in alternatives)]
    if options.list:
        print(*chosen, sep="\n")
        return 0
    verdicts = tried(chosen[options.skip % options.every::options.every], options.jobs)
    bad = sum(verdict.outcome not in GOOD for _, verdict in verdicts)
    print(f"{len(verdicts)} cases, {len(verdicts) - bad} of them done right or refused")
    if options.write is not None:
        options.write.write_text(page(verdicts, len(all_cases())), encoding="utf-8")
    return int(bad > 0)


def tried(cases: list[Case], jobs: int) -> list[tuple[Case, Verdict]]:
    with tempfile.TemporaryDirectory(prefix="damage_") as name, ThreadPoolExecutor(jobs) as pool:
        folder = Path(name)
        (folder / "good").mkdir()
        trials = Trials(Originals(folder / "good"), folder)
        verdicts = []
        with tqdm(total=len(cases), desc="trying", unit="case", disable=None) as bar:
            for case, verdict in zip(cases, pool.map(trials.judge, cases), strict=True):
                bar.update()
                verdicts.append((case, verdict))
                if verdict.outcome not in GOOD:
                    bar.clear()
                    print(f"{verdict.outcome.value}: {case}: {verdict.words[:300]}", flush=True)
        return verdicts


if __name__ == "__main__":
    sys.exit(main())
