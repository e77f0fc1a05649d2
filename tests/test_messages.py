"""Every message of the package is read, and those of the table of faults: advice fits, and what it names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from afm_scale.run.config import RunConfig
from afm_scale.run.settings import settings_of

ROOT = Path(__file__).parents[1]
FOREIGN = {
    "--help", "--no-deps", "--cpp", "--cuda", "--nproc-per-node", "--nnodes", "--gpus-per-node", "--ntasks-per-node",
    "--gpus", "--shm-size", "--ipc", "--prompt",
}
"""Options of argparse, pip, builds, torchrun, Slurm and Docker; of an export's sample.py."""
NO_SETTINGS = {"model.safetensors", "model.sample"}  # a file, and a line of Python
OF_TRAINING = ("run", "train", "checkpoint", "core/holding.py")  # where a run.folder is there to be chosen
RIGHTS = re.compile(r"permission|right to|readable|writable")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a file that are no documentation, with {} for what is put in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    apart |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart:
            yield node.lineno, node.value


ALL = [
    (path.relative_to(ROOT / "afm_scale"), line, text)
    for path in sorted((ROOT / "afm_scale").rglob("*.py")) for line, text in texts(path)
]


def test_every_setting_that_a_message_names_is_one() -> None:
    keys = {setting.key for setting in settings_of(RunConfig)}
    known = {key[:end.start()] for key in keys for end in re.finditer(r"\.|$", key)} | NO_SETTINGS
    rooms = "|".join({key.partition(".")[0] for key in keys})
    named = re.compile(rf"(?<![\w/.{{}}])(?:{rooms})(?:\.[a-z_0-9]+)+")
    found = [(place, line, name[0]) for place, line, text in ALL if " " in text for name in named.finditer(text)]
    assert len(found) > 100 and not [one for one in found if one[2] not in known]


def test_every_option_that_a_message_names_is_one() -> None:
    known = {text for _, _, text in ALL if re.fullmatch(r"--[a-z][a-z-]*", text)} | FOREIGN
    option = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
    found = [(place, line, name[0]) for place, line, text in ALL if " " in text for name in option.finditer(text)]
    assert len(found) > 30 and not [one for one in found if one[2] not in known]


def test_advice_about_rights_is_given_where_the_errors_number_is_looked_at_alone() -> None:
    found = {(str(place), line) for place, line, text in ALL if " " in text and RIGHTS.search(text)}
    assert {place for place, _ in found} == {"core/files.py"}, found


def test_advice_to_choose_another_run_is_for_training() -> None:
    places = {place for place, _, text in ALL if "another run.folder" in text}
    assert places and all(str(place).startswith(OF_TRAINING) for place in places), places


def test_what_is_missing_is_installed_as_the_readme_installs_it() -> None:
    assert not [(place, line) for place, line, text in ALL if re.search(r"pip install ['\"]?afm", text)]


@pytest.mark.parametrize("name", ["damage.md", "ends.md"])
def test_the_advice_of_the_tables_of_faults_fits_the_reason(name: str) -> None:
    rows = [line for line in (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    for reason in ("No such file", "File exists", "No space left", "Is a directory", "Not a directory"):
        assert not [row for row in rows if reason in row and RIGHTS.search(row.partition(reason)[2])]
