from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from afm_scale.__main__ import main
from afm_scale.commands.guidance_figure import GuidanceFigure, guidance_figure_command
from afm_scale.core.errors import EXIT_DONE, UserError

ROOT = Path(__file__).resolve().parents[2]


def untrained(folder: Path, *overrides: str, recipe: str = "mixture2d_afm") -> Path:
    words = ["loop.steps=0", "parallel.device=cpu", "report=null", "hooks.metrics.tensorboard=false", *overrides]
    assert main(["train", recipe, f"run.folder={folder}", *words]) == EXIT_DONE
    return folder


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Path]:
    narrow = ("model.generator.width=8", "model.discriminator.width=8")
    return {
        "seed 0": untrained(tmp_path / "a", *narrow), "seed 1": untrained(tmp_path / "b", *narrow, "loop.seed=1"),
        "other": untrained(tmp_path / "c", *narrow, "data.distribution.sigma=0.2"),
    }


def test_the_tool_draws_a_panel_for_the_data_and_each_name_and_prints_the_mean_of_its_runs(
    small: dict[str, Path], tmp_path: Path
) -> None:
    picture = tmp_path / "new" / "figure.png"
    words = [f"one={small['seed 0']}", f"two={small['seed 0']},{small['seed 1']}", "--samples", "100"]
    tool = [sys.executable, str(ROOT / "tools" / "guidance_figure.py"), str(picture), *words]
    ended = subprocess.run(tool, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert imread(picture).shape[1] == round(3 * 3.4 * 120)
    rows = {name: line for line in ended.stdout.splitlines() for name in ("data", "one", "two") if f" {name} " in line}
    assert rows.keys() == {"data", "one", "two"}
    assert "±" in rows["two"] and "±" not in rows["one"]


def test_runs_on_different_mixtures_are_not_compared(small: dict[str, Path], tmp_path: Path) -> None:
    runs = {"one": [small["seed 0"]], "two": [small["other"]]}
    with pytest.raises(UserError, match="another mixture"):
        guidance_figure_command(GuidanceFigure(picture=tmp_path / "x.png", runs=runs, num_samples=90))


def test_a_run_on_other_data_is_refused(small: dict[str, Path], tmp_path: Path) -> None:
    folder = untrained(tmp_path / "d", "model.generator.width=8", "model.discriminator.width=8", recipe="mixture1d_afm")
    with pytest.raises(UserError, match="kind 'mixture1d'; wanted 'mixture2d'"):
        guidance_figure_command(GuidanceFigure(picture=tmp_path / "x.png", runs={"one": [folder]}, num_samples=90))
