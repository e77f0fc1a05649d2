"""The resolved configuration, as training would use it on so many ranks, checked as training checks it.

What is printed is YAML that loads as the same configuration; its last comments say what `auto` and null mean here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..core.errors import UserError
from ..core.ranges import Range
from ..core.screen import say
from ..run.arguments import add_number, add_recipe
from ..run.check import check
from ..run.config import RunConfig
from ..run.left_open import left_open
from ..run.load import dump_yaml, load
from ..run.ready import check_ready


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_number(parser, "--ranks", int, Range(1, 1_000_000), default=1, metavar="N",
        help="that it is to run on (default 1)")


def run(options: argparse.Namespace) -> int:
    return show_command(options.recipe, options.overrides, options.ranks)


def show_command(recipe: str, overrides: Sequence[str], num_ranks: int = 1) -> int:
    """Raises ConfigError, as training would, if the recipe cannot run on so many ranks."""
    if num_ranks < 1:
        raise UserError(f"--ranks {num_ranks}: wanted 1 or more")
    config = load(RunConfig, recipe, overrides).resolved()
    check(config, num_ranks)
    say(dump_yaml(config), end="")
    say(f"# On {num_ranks} rank(s), on this machine:")
    for setting, value in left_open(config, num_ranks).items():
        say(f"#   {setting}: {value}")
    check_ready(config, may_be_open=True)  # last: a recipe for another machine is seen all the same
    return 0
