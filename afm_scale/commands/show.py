"""`python -m afm_scale show`: the resolved configuration, as training would use it."""

from __future__ import annotations

from collections.abc import Sequence

from ..run.config import RunConfig
from ..run.load import dump_yaml, load


def show_command(recipe: str, overrides: Sequence[str]) -> int:
    print(dump_yaml(load(RunConfig, recipe, overrides)), end="")
    return 0
