"""Numbers on the command line have ranges too."""

from __future__ import annotations

import argparse

import pytest

from afm_scale.commands.table import BENCHMARKS, COMMANDS
from afm_scale.core.errors import UserError
from afm_scale.run.arguments import Number

EVERY = {**{name: entry for name, entry in COMMANDS.items() if callable(entry)}, **BENCHMARKS}


def options_of(name: str) -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    EVERY[name]().add_arguments(parser)
    return parser._actions


@pytest.mark.parametrize("name", EVERY)
def test_every_number_on_a_command_line_has_a_range_and_is_held_to_it(name: str) -> None:
    for option in options_of(name):
        assert option.type not in (int, float), f"{option.option_strings[0]}: use add_number"
        if isinstance(option.type, Number):
            allowed = option.type.allowed
            defaults = option.default if isinstance(option.default, list) else [option.default]
            assert all(default is None or default in allowed for default in defaults)
            low = allowed.low - 1 if allowed.above is None else allowed.above
            for wrong in (f"{low:.17g}", "nan", "inf", "many", "", "9" * 30):
                with pytest.raises(UserError, match=f"^{option.type.option}: found {wrong}, wanted a"):
                    option.type(wrong)


def test_the_walk_meets_numbers() -> None:
    met = {option.dest for name in EVERY for option in options_of(name) if isinstance(option.type, Number)}
    assert {"num", "seed", "ranks", "shard_mb", "tolerance", "utilisation", "batch_size"} <= met
