"""The steps of the Dockerfiles, done in a plain folder tree: no image can be pulled here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.program import ROOT

FOLDER = ROOT / "docker"
FILES = ["Dockerfile", "Dockerfile.cpu"]


def steps(name: str) -> list[tuple[str, str]]:
    """(word, what stands after it), in order."""
    text = re.sub(r"^#.*\n", "", (FOLDER / name).read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


class Tree:
    """What an image would hold: the folder of WORKDIR, and an interpreter with the packages of this one."""

    def __init__(self, folder: Path) -> None:
        self.app, self.venv = folder / "app", folder / "venv"
        self.app.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True, timeout=120)
        (self.site,) = (self.venv / "lib").glob("python*/site-packages")
        (self.site / "image.pth").write_text(sysconfig.get_path("purelib") + "\n")
        for program in ("useradd", "chown"):  # of the machine that the tests run on, which is left alone
            (self.venv / "bin" / program).write_text(f'#!/bin/sh\necho {program} "$@" >>"{folder}/asked"\n')
            (self.venv / "bin" / program).chmod(0o755)
        self.environment = {
            "PATH": f"{self.venv}/bin:/usr/bin:/bin", "HOME": str(folder), "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1",
        }

    def pretend(self, name: str, version: str) -> None:
        """As an image's own build calls itself."""
        for old in self.site.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        about = self.site / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (about / "RECORD").write_text("")

    def take(self, words: str) -> None:
        """COPY."""
        *sources, target = words.split()
        place = self.app / target
        if sources == ["."]:
            listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, timeout=60,
                                    capture_output=True, text=True).stdout.split()
            for file in listed:
                if not file.startswith(("tests/golden", "docs/")) and (ROOT / file).is_file():
                    (self.app / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / file, self.app / file)
            return
        place.mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(ROOT / source, place)

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=self.app, env=self.environment, text=True, timeout=300,
            capture_output=True, check=False,
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    if not (ROOT / ".git").exists():
        pytest.skip("which files a build is given is asked of git")
    return Tree(tmp_path)


def test_the_steps_leave_a_package_that_runs_and_the_images_own_torch_and_apex(tree: Tree) -> None:
    """pip would not take this torch for what setup.py asks for."""
    tree.pretend("torch", "2.11.0a0+0123abc.nv26.3")
    tree.pretend("apex", "0.1")
    for word, rest in steps("Dockerfile"):
        if word == "COPY":
            tree.take(rest)
        elif word == "RUN":
            done = tree.run(rest)
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
        elif word == "ENV":
            tree.environment.update(pair.split("=", 1) for pair in rest.split())
    before = (tree.app / "docker-build" / "before.txt").read_text()
    assert "torch==2.11.0a0+0123abc.nv26.3 in" in before and "apex==0.1 in" in before
    assert "torch" not in (tree.app / "docker-build" / "wanted.txt").read_text().split()
    assert list(tree.site.glob("torch-*")) == [tree.site / "torch-2.11.0a0+0123abc.nv26.3.dist-info"]

    where = tree.run("python -c 'import afm_scale; print(afm_scale.__file__)'").stdout.strip()
    assert where == str(tree.app / "afm_scale" / "__init__.py")
    health = json.loads(next(rest for word, rest in steps("Dockerfile") if word == "HEALTHCHECK").partition("CMD ")[2])
    assert health == ["python", "-m", "afm_scale", "doctor"]

    tree.pretend("torch", "2.13.0")  # as if pip had put another one in its place
    (check,) = {part for word, rest in steps("Dockerfile") if word == "RUN"
                for part in map(str.strip, rest.split("&&")) if "| diff" in part}
    assert tree.run(check).returncode == 1


def test_the_image_without_a_gpu_asks_for_what_setup_py_asks_for(tree: Tree) -> None:
    tree.take(next(rest for word, rest in steps("Dockerfile.cpu") if word == "COPY"))
    line = next(rest for word, rest in steps("Dockerfile.cpu") if word == "RUN").partition(" && ")[0]
    assert tree.run(line).returncode == 0
    wanted = (tree.app / "docker-build" / "wanted.txt").read_text().splitlines()
    assert "torch>=2.11" in wanted and any(name.startswith("pytest>") for name in wanted)
    assert any(name.startswith("deepspeed") for name in wanted) and len(wanted) == len(set(wanted))


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_pinned_ends_as_another_user_and_lets_requirements_come_first(name: str) -> None:
    found = steps(name)
    words = [word for word, _ in found]
    assert re.fullmatch(r"IMAGE=\S+:\d+\.\d+-\S+", dict(found)["ARG"]) and dict(found)["FROM"] == "${IMAGE}"
    assert dict(found)["USER"] == "1000" and "RUN" not in words[words.index("USER"):]
    copies = [rest for word, rest in found if word == "COPY"]
    assert copies[-1] == ". ." and "setup.py" in copies[0]
    assert words.index("RUN") < words.index("COPY", words.index("COPY") + 1)
    assert (FOLDER / f"{name}.dockerignore").read_text().splitlines()[:2] == [".git", ".venv"]
    for line in [rest for word, rest in found if word == "RUN"]:
        assert "pip install torch" not in line and ("--no-deps" in line or "-c " in line or "pip" not in line)
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, timeout=60, check=False, env=os.environ)
        assert done.stderr == b""
