"""Ways of training side by side: every run of a comparison by the train command, then a table and a picture.

Called again it goes on: a run that has ended is not run again, one that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..run.arguments import add_recipe
from .comparing import Compare, add_how, compare_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, note="what is compared (benchmarks/comparison.py says how to write it)")
    add_how(parser)
    add = parser.add_argument
    add("--markdown", type=Path, metavar="FILE", help="the table (default FOLDER/table.md)")
    add("--picture", type=Path, metavar="FILE", help="the picture (default FOLDER/figures.png)")


def run(options: argparse.Namespace) -> int:
    return compare_command(Compare(
        comparison=options.recipe, overrides=options.overrides, processes=options.processes, only=options.only,
        markdown=options.markdown, picture=options.picture,
    ))
