"""The command line: what stands in the table runs, its words come in any order, and a command is one file more."""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.benchmarks import data, step, traffic
from afm_scale.commands import show, train
from afm_scale.commands.table import BENCHMARKS, COMMANDS
from afm_scale.run.arguments import parse
from tests.program import ROOT

TOOLS = sorted(file.stem for file in (ROOT / "tools").glob("*.py"))
ALL = [[name] for name, found in COMMANDS.items() if callable(found)] + [["benchmark", name] for name in BENCHMARKS]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_says_what_stands_after_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: afm_scale {' '.join(words)} ")


def test_the_overview_names_every_command_and_imports_none() -> None:
    script = "import sys; from afm_scale.__main__ import main\ntry: main(['--help'])\nfinally: print(len(sys.modules))"
    script += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_every_tool_is_a_command_too() -> None:
    assert TOOLS and set(TOOLS) <= COMMANDS.keys()
    for name in TOOLS:
        assert f'main("{name}")' in (ROOT / "tools" / f"{name}.py").read_text()


@pytest.mark.parametrize("command", [train, show, data, step, traffic], ids=lambda command: command.__name__)
def test_recipe_overrides_and_options_come_in_any_order(command) -> None:
    options = {data: ["--images", "3"], step: ["--steps", "3"], traffic: ["--ranks", "3"]}.get(command, [])
    parts = [["digits_afm"], ["loop.steps=3"], ["objective.times={kind: grid, steps: 2}"], *([options] * bool(options))]
    for order in itertools.permutations(parts):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        found = parse(parser, list(itertools.chain(*order)))
        assert found.recipe == "digits_afm"
        assert set(found.overrides) == {parts[1][0], parts[2][0]}
        assert not options or vars(found)[options[0].strip("-")] == 3


def test_the_recipe_is_the_first_word_without_an_equals_sign_or_a_file(tmp_path: Path) -> None:
    parser, odd = argparse.ArgumentParser(), tmp_path / "rate=1.yaml"
    odd.touch()
    train.add_arguments(parser)
    found = parse(parser, ["loop.steps=3", str(odd), "average.decay=0"])
    assert (found.recipe, found.overrides) == (str(odd), ["loop.steps=3", "average.decay=0"])
    found = parse(parser, ["digits_afm", "loop.steps"])
    assert (found.recipe, found.overrides) == ("digits_afm", ["loop.steps"])  # the loader says what is missing in it


@pytest.mark.parametrize("words", [["train"], ["train", "loop.steps=3"], ["benchmark", "traffic", "--ranks", "2"]])
def test_a_command_without_its_recipe_ends_with_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: afm_scale ") and "recipe" in told.lower()


TOY = '''\
"""Counts to a number."""

from __future__ import annotations

from ..core.errors import UserError


def add_arguments(parser):
    parser.add_argument("number", type=int)


def run(options):
    if options.number < 0:
        raise UserError(f"found {options.number}, wanted 0 or more")
    print(*range(options.number))
    return options.number
'''

ENTRY = '''
def _toy() -> Command:
    """counts"""
    from . import toy

    return toy


COMMANDS = {
    "toy": _toy,'''


def test_a_command_is_added_by_one_file_and_its_entry(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "afm_scale", tmp_path / "afm_scale", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "afm_scale" / "commands" / "toy.py").write_text(TOY)
    table = tmp_path / "afm_scale" / "commands" / "table.py"
    table.write_text(table.read_text().replace("\nCOMMANDS = {", ENTRY))

    def run(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "afm_scale", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    assert run("toy", "3") == (3, "0 1 2\n", "")
    assert run("toy", "--", "-1") == (2, "", "error: found -1, wanted 0 or more\n")
    assert "counts" in run("--help")[1]
    code, shown, _ = run("toy", "--help")
    assert code == 0 and shown.startswith("usage: afm_scale toy") and "Counts to a number" in shown
