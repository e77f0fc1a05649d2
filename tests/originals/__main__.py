"""python -m tests.originals: odd archives, folders and images, and what make_shards makes of each of them.

Well is what ends with the right images under the right labels, every file of the source in the account and every change
counted and printed; or with exit code 2 and one message, and no data set.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

os.environ.update(OMP_NUM_THREADS="1", NO_COLOR="1")

from .cases import judge  # noqa: E402
from .every import all_cases  # noqa: E402
from .table import page  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.originals", description=__doc__.partition("\n")[2])
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose line has all of these words")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="the table of all cases")
    options = parser.parse_args()
    chosen = [case for case in all_cases() if all(word in str(case) for word in options.only.split())]
    verdicts = []
    for case in tqdm(chosen, unit="case", disable=None):
        verdict = judge(case)
        verdicts.append((case, verdict))
        if not verdict.is_good:
            print(f"{verdict.came_to}: {case}: {verdict.words}", flush=True)
    bad = sum(not verdict.is_good for _, verdict in verdicts)
    print(f"{len(verdicts)} cases, {len(verdicts) - bad} of them ended well")
    if options.write is not None:
        options.write.write_text(page(verdicts), encoding="utf-8")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
