"""Five objectives on one network and one loop, at equal operations: `benchmark compare` on docs/evidence.

    python tools/compare_objectives.py --data digits --processes 1
    python tools/compare_objectives.py --data mnist --budget 2e6 --seeds 3 "data={mnist: [data.file=FILE.npz, ...]}"

A unit of the budget is one forward of the flow-matching network for one image. Called again it goes on. The table,
curves of quality over operations and samples side by side lie in the folder that the comparison names.
"""

from __future__ import annotations

import argparse

from ..core.ranges import Range
from ..run.arguments import add_number
from ..run.forecast.counting import learner_flops
from ..run.load import load
from .comparing import Compare, add_how, compare_command, kept
from .comparison import ComparisonConfig, jobs_of

DATA = ("mixture1d", "digits", "mnist")
_UNIT = "flow matching"  # the way whose network's forward is the unit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=DATA, required=True, help="what is compared is in docs/evidence")
    add_number(parser, "--budget", float, Range(above=0, high=1e18), metavar="UNITS",
        help="forwards of one image that every run may cost (default: as the comparison says)")
    add_number(parser, "--seeds", int, Range(1, 1000), metavar="K", help="seeds 0 to K - 1 (default: as it says)")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the comparison's")
    add_how(parser)


def run(options: argparse.Namespace) -> int:
    comparison, overrides = kept(f"objectives_{options.data}"), list(options.overrides)
    if options.seeds is not None:
        overrides.append(f"seeds={list(range(options.seeds))}")
    if options.budget is not None:
        jobs = jobs_of(load(ComparisonConfig, comparison, overrides))
        unit = learner_flops(next(job.config for job in jobs if job.way == _UNIT))
        overrides += ["equal=null", f"budget={options.budget * unit!r}"]
    return compare_command(Compare(
        comparison=comparison, overrides=overrides, processes=options.processes, only=options.only
    ))
