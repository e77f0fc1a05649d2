"""Paths in recipes, overrides and on command lines: what a shell would put in is put in, or refused by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.commands.table import COMMANDS
from afm_scale.core.errors import EXIT_USER_ERROR, ConfigError
from afm_scale.core.typed import Mistake, build, to_mapping
from afm_scale.run.config import RunConfig
from afm_scale.run.load import dump_yaml, load


@dataclass(frozen=True, kw_only=True)
class Places:
    one: Path
    more: tuple[Path, ...] = ()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HOME": "/home/me", "SCRATCH": "/big", "ODD": "a$b", "EMPTY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(("text", "path"), [
    ("~", "/home/me"), ("~/runs/~", "/home/me/runs/~"), ("$SCRATCH/run", "/big/run"), ("${SCRATCH}1", "/big1"),
    ("a/$$HOME", "a/$HOME"), ("./~", "~"), ("a$", "a$"), ("a$1", "a$1"), ("a$(b)", "a$(b)"), ("$ODD/c", "a$b/c"),
    ("~root", os.path.expanduser("~root")),
])
def test_a_path_is_expanded_and_written_so_that_it_is_read_back(text: str, path: str) -> None:
    places = build(Places, {"one": text, "more": [text]})
    assert places == Places(one=Path(path), more=(Path(path),))
    assert build(Places, to_mapping(places)) == places


@pytest.mark.parametrize(("text", "told"), [
    ("$UNSET/x", r"one: the variable \$UNSET is not set; set it, or write \$\$ for a \$"),
    ("a/${UNSET}", r"\$\{UNSET\} is not set"), ("$EMPTY/x", r"\$EMPTY is empty"), ("${HOME", r"\$\{HOME is not set"),
    ("${HOME:-x}", "not set"), ("~nobody_here/x", "found ~nobody_here, but there is no such user"),
    ("$" + "A" * 5000, r"A\.\.\. is not set"),
])
def test_what_is_not_set_is_refused_by_its_name(text: str, told: str) -> None:
    with pytest.raises(Mistake, match=told):
        build(Places, {"one": text})


def test_recipes_overrides_and_names_of_autoencoders_are_paths_too(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("inherit: digits_afm\nrun: {folder: $SCRATCH/a}\n")
    os.environ["SCRATCH"] = str(tmp_path)  # the fixture puts it back
    (tmp_path / "mine.yaml").write_text("inherit: $SCRATCH/base.yaml\n")
    config = load(RunConfig, "$SCRATCH/mine.yaml")
    assert config.run.folder == tmp_path / "a"
    assert load(RunConfig, "$SCRATCH/mine", ["run.folder=~/try #2"]).run.folder == Path("/home/me/try #2")
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert load(RunConfig, tmp_path / "again.yaml") == config
    with pytest.raises(ConfigError, match=r"override 'run.folder=\$UNSET/x': run.folder: the variable \$UNSET is not"):
        load(RunConfig, "digits_afm", ["run.folder=$UNSET/x"])
    latents = "data={kind: latents, folder: x, global_batch: 8, vae: %s}"
    assert load(RunConfig, "digits_afm", ["report=null", latents % "~/vae"]).data.vae == "/home/me/vae"


@pytest.mark.parametrize("words", [
    ["inspect-checkpoint", "$UNSET/run"], ["sample", "x", "--num=1", "--out", "$UNSET/o"],
    ["sample", "x", "--num=1", "--out=y", "--vae=$UNSET"],
    ["make-shards", "$UNSET", "out"], ["evaluate", "~nobody_here"], ["replay-reference", "a.json", "$UNSET/b.json"],
    ["guidance-figure", "a.png", "x=$UNSET/run"], ["train", "digits_afm", "run.folder=$UNSET"], ["show", "$UNSET"],
])
def test_every_command_refuses_a_variable_that_is_not_set(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name = words[0] if words[0] in COMMANDS else words[0].replace("-", "_")
    try:
        code = main([name, *words[1:]])
    except SystemExit as end:  # of argparse
        code = end.code
    told = capsys.readouterr().err
    assert code == EXIT_USER_ERROR and ("$UNSET is not set" in told or "no such user" in told), told
