"""The published order of turns beside cheaper updates, at equal operations: `benchmark compare` on docs/evidence.

    python tools/compare_updates.py digits --processes 1
    python tools/compare_updates.py mnist "data={mnist: [data.part=train, data.file=FILE.npz]}"

Called again it goes on. The table and the picture lie in the folder that the comparison names.
"""

from __future__ import annotations

import argparse
from typing import Literal, get_args

from ..core.errors import ConfigError
from ..run.arguments import add_recipe
from .comparing import Compare, add_how, compare_command, kept

Data = Literal["digits", "mnist", "mixture1d", "mixture2d"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, note=f"one of {', '.join(get_args(Data))}: on which data; what is compared is in docs/evidence")
    add_how(parser)


def run(options: argparse.Namespace) -> int:
    if options.recipe not in get_args(Data):
        raise ConfigError(f"compare_updates {options.recipe}: wanted one of {', '.join(get_args(Data))}")
    return compare_command(Compare(
        comparison=kept(f"cheap_{options.recipe}"), overrides=options.overrides, processes=options.processes,
        only=options.only,
    ))
