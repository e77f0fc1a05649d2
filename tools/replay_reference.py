"""Replays recorded runs of the published method: python tools/replay_reference.py CASE.json [...] [--json]

Prints, per case, the largest absolute error over all losses, predictions and final weights, computed in float64.
Exit code 0 if every case is within --tolerance, 1 if not, 2 if a case cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.replay_reference import replay
from afm_scale.core.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE.json")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tolerance", type=float, default=1e-9)
    options = parser.parse_args()
    try:
        results = {str(case): replay(case) for case in options.cases}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    largest = {case: max(errors.values()) for case, errors in results.items()}
    if options.json:
        print(json.dumps({case: {"max_error": largest[case], **errors} for case, errors in results.items()}, indent=2))
    else:
        for case, errors in results.items():
            parts = ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items())
            print(f"{case}: max error {largest[case]:.2e}  ({parts})")
    return int(any(not error <= options.tolerance for error in largest.values()))


if __name__ == "__main__":
    sys.exit(main())
