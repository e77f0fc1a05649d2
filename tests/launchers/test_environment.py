"""environment.sh finds a Python that runs, and does nothing twice."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
SCRIPTS = ["launchers/environment.sh", "launchers/local.sh", "launchers/deepspeed.sh", "tests/run.sh", ".ci/run"]
TOOLS = ["bash", "cat", "cksum", "dirname"]


@pytest.fixture
def tree(tmp_path):
    """A copy of what the environment is made from, and a PATH with a few tools and no Python."""
    (tmp_path / "launchers").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("launchers/environment.sh", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return tmp_path


def put(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def bash(tree: Path, line: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [tree / "bin" / "bash", "-c", f"set -euo pipefail; {line}"], cwd=tree, env={"PATH": str(tree / "bin")},
        text=True, capture_output=True, timeout=60,
    )


def stamped(tree: Path, extras: str = "test") -> str:
    """A line that marks .venv as installed, with these extras, from the tree as it stands."""
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return f'printf "%s\\n" "$(cat setup.py constraints.txt | cksum) $PWD" "{extras}" >.venv/installed'


def stamp_of_all(tree: Path) -> str:
    extras = "test,data,evaluation,parallel,deepspeed"
    return f'printf "%s\\n" "$(cat setup.py constraints.txt | cksum) $PWD" "{extras}" >.venv/installed'


def installer(tree: Path) -> Path:
    """Makes the .venv's python one that notes what it is to install, and returns the file of those notes."""
    put(tree / ".venv" / "bin" / "python", f'[ "$1" = -c ] || echo "$@" >>{tree}/asked')
    return tree / "asked"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", ROOT / script], capture_output=True, timeout=60).stderr == b""


def test_without_a_suitable_python_one_line_says_what_to_do(tree):
    put(tree / "bin" / "python3", "exit 1")  # another version
    ended = bash(tree, "source launchers/environment.sh test")
    assert ended.returncode == 2
    assert ended.stderr.startswith("found no Python 3.10, 3.11 or 3.12") and ended.stderr.count("\n") == 1


def test_a_python_that_does_not_run_is_passed_over(tree):
    bash(tree, stamped(tree))
    put(tree / "bin" / "python3.12", "echo 'not installed' >&2; exit 127")
    put(tree / "bin" / "python3.10", f'exec {sys.executable} "$@"')
    ended = bash(tree, "source launchers/environment.sh test; find_python")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "python3.10\n", "")


def test_an_environment_that_is_up_to_date_is_left_alone(tree):
    bash(tree, stamped(tree))
    ended = bash(tree, 'source launchers/environment.sh test; echo "$python"')
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{tree}/.venv/bin/python\n", "")


def test_a_changed_pin_is_installed(tree):
    """The interpreter of this .venv cannot install, so that the attempt is seen and its failure is passed on."""
    bash(tree, stamped(tree))
    (tree / ".venv" / "bin" / "python").unlink()
    put(tree / ".venv" / "bin" / "python", f'case "$*" in *"pip install"*) exit 9;; esac; exec {sys.executable} "$@"')
    (tree / "constraints.txt").write_text("numpy==1\n")
    ended = bash(tree, "source launchers/environment.sh test; echo not reached")
    assert (ended.returncode, ended.stdout) == (9, "")
    assert ended.stderr.startswith("installing what constraints.txt pins")


def test_each_set_of_extras_is_installed_once_and_both_stay(tree):
    """Training with few packages and testing with many share one .venv without taking turns."""
    asked = installer(tree)
    for extras in ("test", "test,data", "test", "data", "data,test"):
        ended = bash(tree, f"source launchers/environment.sh {extras}")
        assert ended.returncode == 0, ended.stderr
    first, second = asked.read_text().splitlines()
    assert first.endswith(f"-e {tree}[test]")
    assert second.endswith(f"-e {tree}[test,test,data]")


@pytest.mark.parametrize("script", ["launchers/local.sh", "launchers/deepspeed.sh", "tests/run.sh", ".ci/run"])
def test_an_exported_cdpath_changes_nothing(tree, script):
    """With it `cd` prints where it went, or goes to another folder of the name."""
    (tree / "other" / "launchers").mkdir(parents=True)
    for name in ("launchers/local.sh", "launchers/deepspeed.sh", "tests/run.sh", ".ci/run"):
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    bash(tree, stamped(tree))
    (tree / ".venv" / "bin" / "python").unlink()
    put(tree / ".venv" / "bin" / "python", '[ "$1" = -c ] && echo 0 || echo "in $PWD:" "$@"')
    ended = bash(tree, f"{stamp_of_all(tree)}; export CDPATH=.:{tree}/other:{tree}; bash {script}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"in {tree}: ") and ended.stdout.count("\n") == 1


@pytest.mark.parametrize(("words", "recipe", "settings"), [
    ("", "configs/recipes/digits_afm.yaml", ""), ("a.b=c d=e", "configs/recipes/digits_afm.yaml", "a.b=c|d=e|"),
    ("mixture1d_afm 'a={b: c}'", "mixture1d_afm", "a={b: c}|"), ("launchers/environment.sh", "{tree}", ""),
])
def test_the_launchers_tell_a_recipe_from_its_settings(tree, words, recipe, settings):
    """A file is named by its whole path, since they change into the folder of the project."""
    (tree / "bin" / "basename").symlink_to(shutil.which("basename"))
    line = 'printf "%s\n" "$recipe"; [[ ${#settings[@]} == 0 ]] || printf "%s|" "${settings[@]}"'
    ended = bash(tree, f"{stamped(tree)}; source launchers/environment.sh test; recipe_from {words}; {line}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{recipe.format(tree=tree / 'launchers' / 'environment.sh')}\n{settings}"


def test_after_a_change_only_what_is_asked_for_counts_as_installed(tree):
    asked = installer(tree)
    bash(tree, "source launchers/environment.sh test,data")
    (tree / "constraints.txt").write_text("numpy==1\n")
    for extras in ("test", "test", "data"):
        assert bash(tree, f"source launchers/environment.sh {extras}").returncode == 0
    endings = [line.rpartition("[")[2] for line in asked.read_text().splitlines()]
    assert endings == ["test,data]", "test]", "test,data]"]


def test_torch_fidelity_is_installed_without_what_it_asks_for(tree):
    """It asks for torchvision, which is not used, and which is tied to one version of torch."""
    asked = installer(tree)
    for extras in ("test,evaluation", "evaluation,test"):
        assert bash(tree, f"source launchers/environment.sh {extras}").returncode == 0
    first, second = asked.read_text().splitlines()
    assert first.endswith(f"-e {tree}[test]")
    assert second.endswith("--no-deps torch-fidelity") and f"-c {tree}/constraints.txt" in second


def test_a_stamp_of_another_kind_is_installed_over(tree):
    asked = installer(tree)
    bash(tree, 'echo "$(cat setup.py constraints.txt | cksum) $PWD" >.venv/installed')
    assert bash(tree, "source launchers/environment.sh test").returncode == 0
    assert asked.exists()


def test_the_extras_that_the_scripts_ask_for_are_those_of_the_package(monkeypatch):
    package = {}
    monkeypatch.setattr(setuptools, "setup", lambda **about: package.update(about))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    extras = package["extras_require"]
    for script in SCRIPTS[1:3]:
        (line,) = [line for line in (ROOT / script).read_text().splitlines() if line.startswith("source ")]
        assert set(line.split()[-1].split(",")) <= extras.keys()
    of_data = ("dali", "latents", "lora", "parquet", "text", "webdataset")
    assert sorted(extras["data"]) == sorted(requirement for name in of_data for requirement in extras[name])


@pytest.mark.parametrize(("hosts", "told"), [
    (None, "there is no such file"),
    ("", "names no host"),
    ("node1 slots=8\nnode2\n", "line 2: 'node2', wanted 'host slots=8'"),
    ("node1 slots=8\nnode2 slots=none\n", "line 2: 'node2 slots=none', wanted 'host slots=8'"),
    ("node1 slots=8 # the first\n\nnode2 slots=4", "line 3: 4 slots where the first host has 8"),
])
@pytest.mark.parametrize("form", ["--hostfile {}", "--hostfile={}", "-H {}"])
def test_a_wrong_hostfile_is_one_message(tree, hosts, told, form):
    """DeepSpeed would train on this machine alone, or end in a traceback."""
    (tree / "bin" / "sed").symlink_to(shutil.which("sed"))
    shutil.copy(ROOT / "launchers/deepspeed.sh", tree / "launchers/deepspeed.sh")
    if hosts is not None:
        (tree / "hosts").write_text(hosts)
    put(tree / "bin" / "interpreter", "echo reached")
    ended = bash(tree, f"AFM_SCALE_PYTHON=interpreter bash launchers/deepspeed.sh {form.format('hosts')} -- digits_afm")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert told in ended.stderr


def test_a_hostfile_that_is_right_is_handed_on(tree):
    (tree / "bin" / "sed").symlink_to(shutil.which("sed"))
    shutil.copy(ROOT / "launchers/deepspeed.sh", tree / "launchers/deepspeed.sh")
    (tree / "hosts").write_text("# two\nnode1 slots=8\nnode2 slots=8\n")
    put(tree / "bin" / "interpreter", '[ "$1" = -c ] && echo 8 || echo "$@"')
    ended = bash(tree, "AFM_SCALE_PYTHON=interpreter bash launchers/deepspeed.sh --hostfile hosts -- digits_afm a.b=c")
    wanted = "--hostfile hosts --module --no_local_rank afm_scale train digits_afm parallel.plan=deepspeed a.b=c\n"
    assert (ended.returncode, ended.stdout) == (0, f"launchers/deepspeed_runner.py {wanted}"), ended.stderr


def test_an_interpreter_that_is_named_is_taken_and_nothing_installed(tree):
    put(tree / "bin" / "interpreter", "exit 9")
    ended = bash(tree, 'AFM_SCALE_PYTHON=interpreter; source launchers/environment.sh test; echo "$python"')
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{tree}/bin/interpreter\n", "")
    ended = bash(tree, "AFM_SCALE_PYTHON=nosuch; source launchers/environment.sh test")
    assert ended.returncode == 2 and ended.stderr.startswith("AFM_SCALE_PYTHON=nosuch is no program here")
