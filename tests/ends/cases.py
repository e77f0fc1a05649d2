"""All cases, in the order of the table. A case is data with a name, and a way to run it in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from . import configurations, kills, surroundings
from .outcome import Verdict

MODULES = (configurations, surroundings, kills)


class Case(Protocol):
    def run(self, root: Path) -> Verdict: ...


def all_cases() -> list[Case]:
    found = [case for module in MODULES for case in module.cases()]
    assert len({str(case) for case in found}) == len(found), "two cases of one name"
    return found
