"""What README and docs/ say that can be typed or opened is there: commands, recipes, files, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from afm_scale.commands.table import BENCHMARKS, COMMANDS
from afm_scale.run.shipped import RECIPES

from .program import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = re.compile(r"(?:[a-z_0-9]+/)+(?:[A-Za-z_0-9]+\.(?:py|sh|md|yaml|png))?(?![A-Za-z_0-9*])")
OURS = {"afm_scale", "configs", "docs", "launchers", "tests", "tools"} | {
    folder.name for folder in (ROOT / "afm_scale").iterdir() if folder.is_dir()
}


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_command_that_is_shown_exists(page: Path) -> None:
    text = page.read_text()
    shown = re.findall(r"(?:^|-m |`)(afm_scale|tools/benchmark\.py) ([a-z_]+)(?: ([a-z_0-9]+))?", text, re.MULTILINE)
    shown += [("tools", name, "") for name in re.findall(r"tools/([a-z_]+)\.py", text)]
    for program, name, after in shown:
        assert name in (BENCHMARKS if program == "tools/benchmark.py" else COMMANDS), f"{program} {name}"
        if (program, name) == ("afm_scale", "benchmark"):
            assert after in BENCHMARKS
        if name in ("train", "show") and after:
            assert (RECIPES / f"{after}.yaml").is_file() or after == "configs", after


def test_every_file_of_ours_that_is_named_exists(page: Path) -> None:
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        for name in PATH.findall(span):
            if name.split("/")[0] in OURS and not name.endswith("/x.py"):  # x: what a reader is to write
                places = [folder / name for folder in (ROOT, ROOT / "afm_scale")]
                assert any(place.exists() for place in places), name


def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_page_of_the_house_has_every_room_and_only_files_that_are_there() -> None:
    text, package = (ROOT / "docs" / "architecture.md").read_text(), ROOT / "afm_scale"
    rooms = [folder for folder in package.iterdir() if (folder / "__init__.py").exists()]
    assert [room.name for room in rooms if f"`{room.name}/`" not in text] == []
    bare = re.findall(r"`([a-z_0-9]+\.py)`", text)  # in the table, where the room stands beside them
    assert bare and [name for name in bare if not any((room / name).exists() for room in rooms)] == []


def test_no_page_names_a_folder_of_the_machine_it_was_written_on(page: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:tmp|root|home|work)/\S*", page.read_text())
