"""A thin selection of what `python -m tests.damage` tries, and that each outcome is seen; docs/damage.md has all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import trial
from .cases import all_cases
from .doors import Door
from .harm import absent, nothing
from .originals import Originals
from .trial import EXECUTED, GOOD, Case, Outcome, Trials

LIGHT = {
    "run", "old", "samples.npz", "images.npz", "reference.npz", "packed", "features.pt", "recipe.yaml", "base.yaml",
}
"""What is made in a second or two."""
SELECTED = [case for case in all_cases() if LIGHT.issuperset(case.door.needs)][7::60]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    folder = tmp_path_factory.mktemp("damage")
    (folder / "good").mkdir()
    yield Trials(Originals(folder / "good"), folder)


@pytest.mark.parametrize("case", SELECTED, ids=str)
def test_a_bad_file_is_refused_in_one_message_and_an_odd_one_used(trials: Trials, case: Case) -> None:
    verdict = trials.judge(case)
    assert verdict.outcome in GOOD, verdict


def program(text: str) -> Door:
    """A command of our own, which does as the text says in the folder of the case."""
    return Door(
        name=text, needs=("recipe.yaml",), words=lambda root: ["-c", text], writes=("out",),
        result=lambda root, printed: printed,
    )


SAYS = "import sys; sys.stderr.write({!r}); sys.stderr.flush(); import os; os._exit({})"


@pytest.mark.parametrize(("text", "wants", "harm", "outcome"), [
    ("print('drawn')", "done", nothing, Outcome.DONE),
    ("print('drawn'); open('out', 'w')", "done", nothing, Outcome.DONE),
    ("print('drawn')", "refused", nothing, Outcome.TAKEN),
    ("import os; print(os.path.exists('recipe.yaml'))", "either", absent("recipe.yaml"), Outcome.TAKEN),
    (SAYS.format("error: recipe.yaml is cut\n", 2), "refused", nothing, Outcome.REFUSED),
    (SAYS.format("error: recipe.yaml is cut\n", 2), "done", nothing, Outcome.REFUSED_GOOD),
    (SAYS.format("error: it is cut\n", 2), "refused", nothing, Outcome.MESSAGE),
    (SAYS.format("error: recipe.yaml\nerror: recipe.yaml\n", 2), "refused", nothing, Outcome.MESSAGE),
    (SAYS.format("error: recipe.yaml is cut\n", 1), "refused", nothing, Outcome.DIED),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "refused", nothing, Outcome.DIED),
    ("raise ValueError('recipe.yaml')", "refused", nothing, Outcome.TRACEBACK),
    ("held = bytes(8 << 30)", "refused", nothing, Outcome.MEMORY),
    (f"open({EXECUTED!r}, 'w'); {SAYS.format('error: recipe.yaml', 2)}", "refused", nothing, Outcome.EXECUTED),
    ("open('other/config.yaml', 'w')", "done", nothing, Outcome.FOREIGN),
    ("open('recipe.yaml', 'w')", "done", nothing, Outcome.FOREIGN),
    ("open('left', 'w')", "done", nothing, Outcome.FOREIGN),
    ("import os; os.remove('other/config.yaml')", "done", nothing, Outcome.FOREIGN),
    (f"open('out', 'w'); {SAYS.format('error: recipe.yaml', 2)}", "refused", nothing, Outcome.FOREIGN),
    ("import os; os.mkfifo('pipe'); open('pipe')", "refused", nothing, Outcome.HANG),
    ("while True: pass", "refused", nothing, Outcome.HANG),
])
def test_what_becomes_of_a_file_is_seen(
    trials: Trials, monkeypatch: pytest.MonkeyPatch, text: str, wants: str, harm: Callable[[Path], object],
    outcome: Outcome,
) -> None:
    monkeypatch.setattr(trial, "LIMIT_SECONDS", 0.5 if outcome is Outcome.HANG else 20.0)
    case = Case(kind="", name="", door=program(text), harm=harm, wants=wants, names=("recipe.yaml",))
    assert trials.judge(case).outcome is outcome
