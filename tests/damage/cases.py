"""All cases, in the order of the table."""

from __future__ import annotations

from . import of_arrays, of_checkpoints, of_networks, of_packed, of_recipes, of_runs
from .trial import Case

MODULES = (of_checkpoints, of_runs, of_networks, of_arrays, of_packed, of_recipes)


def all_cases() -> list[Case]:
    found = [case for module in MODULES for case in module.cases()]
    assert len({str(case) for case in found}) == len(found), "two cases of one name"
    return found
