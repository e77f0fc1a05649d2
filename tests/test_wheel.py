"""The package as it is installed: a wheel is built, put into a folder of its own, and used from another one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.program import ROOT, SMALL_AFM

CHECKOUT = ("setup.py", "pyproject.toml", "README.md", "afm_scale", "configs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's files and nothing else; the copy of the checkout that it is made of is gone."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in CHECKOUT:
        source, copy = ROOT / name, folder / "checkout" / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheels", folder / "checkout"]
    gone = folder / "checkout" / "afm_scale" / "gone.py"
    gone.touch()
    subprocess.run([*pip, *build], check=True, capture_output=True, timeout=120)  # it leaves build/ behind
    gone.unlink()
    subprocess.run([*pip, *build], check=True, capture_output=True, timeout=120)
    shutil.rmtree(folder / "checkout")
    (wheel,) = (folder / "wheels").glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--no-compile", "--target", folder / "site", wheel]
    subprocess.run([*pip, *install], check=True, capture_output=True, timeout=120)
    return folder / "site"


@pytest.fixture
def use(installed: Path, tmp_path: Path):
    """Runs a program in a folder of its own with the installed package on the path."""

    def use(*words: str | Path, code: int = 0) -> tuple[str, str]:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(
            [*map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    return use


def test_a_wheel_holds_the_package_and_its_configurations_alone(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"afm_scale", "bin"}
    assert not (installed / "afm_scale" / "gone.py").exists()  # what an earlier build in the same folder had
    page = Path("afm_scale", "evaluation", "watching", "page")
    for name in ("page.html", "page.js", "page.css"):
        assert (installed / page / name).read_bytes() == (ROOT / page / name).read_bytes()
    shipped, wanted = installed / "afm_scale" / "configs", ROOT / "configs"
    names = sorted(file.relative_to(wanted) for file in wanted.rglob("*.yaml"))
    assert names and [file.relative_to(shipped) for file in sorted(shipped.rglob("*.yaml"))] == names
    assert all((shipped / name).read_bytes() == (wanted / name).read_bytes() for name in names)


def test_the_installed_command_shows_a_shipped_recipe_from_any_folder(use, installed: Path) -> None:
    shown, _ = use(sys.executable, installed / "bin" / "afm_scale", "show", "loop.steps=7", "afm_1step_xl2")
    config = yaml.safe_load(shown)
    assert config["loop"]["steps"] == 7 and config["model"]["generator"]["hidden_size"] == 1152


def test_a_recipe_elsewhere_inherits_a_shipped_one_by_name(use, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("inherit: [afm_1step_xl2, model/dit_b2]\nloop: {steps: 3}\n")
    script = (
        "import sys, afm_scale; from afm_scale.__main__ import main; print(afm_scale.__file__); "
        "sys.exit(main(['show', 'mine']))"
    )
    shown, _ = use(sys.executable, "-c", script)
    place, _, text = shown.partition("\n")
    assert "/site/afm_scale/" in place
    config = yaml.safe_load(text)
    assert config["loop"]["steps"] == 3 and config["model"]["generator"]["hidden_size"] == 768

    (tmp_path / "mine.yaml").write_text("inherit: [afm_1step_xl3]\n")
    _, told = use(sys.executable, "-m", "afm_scale", "show", "mine", code=2)
    assert told.startswith("error: mine.yaml: inherit: afm_1step_xl3") and "did you mean 'afm_1step_xl2'?" in told


@pytest.mark.slow
def test_the_installed_package_trains_and_samples(use, tmp_path: Path) -> None:
    program = (sys.executable, "-m", "afm_scale")
    use(*program, "train", *SMALL_AFM, "loop.steps=2", "parallel.device=cpu")
    assert (tmp_path / "runs" / "digits" / "summary.json").is_file()
    use(*program, "sample", "runs/digits", "--out", "images", "--num", "3")
    assert len(list((tmp_path / "images").glob("*.png"))) == 3
    shown, _ = use(*program, "inspect_checkpoint", "runs/digits", "--digest")
    assert "step        2" in shown
