"""The resolved configuration, as training would use it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..run.arguments import add_recipe
from ..run.config import RunConfig
from ..run.load import dump_yaml, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)


def run(options: argparse.Namespace) -> int:
    return show_command(options.recipe, options.overrides)


def show_command(recipe: str, overrides: Sequence[str]) -> int:
    print(dump_yaml(load(RunConfig, recipe, overrides)), end="")
    return 0
