"""A plan is really added: by the one file tests/toys/single.py, and one line in the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADD = """
import json, sys
from afm_scale.parallel.table import PLANS
from tests.toys import single
PLANS["single"] = single.SingleConfig  # the line
from afm_scale.__main__ import main
codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps({"codes": codes, "steps": single.steps_taken, "turns": [vars(turn) for turn in single.turns_told]}))
"""
RECIPE = ("mixture1d_afm", "parallel.plan=single", "parallel.device=cpu", "data.global_batch=8", "loop.accumulation=2")
TRAINING = (
    "loop.steps=3", "report=null", "hooks.samples=null", "hooks.metrics.tensorboard=false", "run.folder=run",
)


def program(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, text=True, capture_output=True, timeout=100, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
    )


def with_the_line(folder: Path, *commands: tuple[str, ...]) -> tuple[dict, str, str]:
    """What commands return, one after the other in one process, and what they print, with the plan in the table."""
    done = program(folder, "-W", "error", "-c", ADD, json.dumps(commands))
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout, done.stderr


def test_a_new_plan_trains_with_its_own_settings(tmp_path: Path) -> None:
    found, _, said = with_the_line(tmp_path, ("train", *RECIPE, *TRAINING, "parallel.single.count_only=generator"))
    assert found["codes"] == [0], said
    assert found["steps"] == ["generator"] * 3
    assert found["turns"] == [{"microbatch": 4, "accumulation": 2}]
    assert "plan single on 1 cpu rank(s)" in said
    start = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[0])
    assert start["plan"]["plan"] == "single"


def test_a_new_plan_is_shown_with_its_section_and_refused_as_any_other(tmp_path: Path) -> None:
    commands = [("show", *RECIPE, *words) for words in (
        (), ("parallel.plan=singel",), ("parallel.single.count=x",), ("--ranks", "2"),
    )]
    found, shown, said = with_the_line(tmp_path, *commands)
    assert found["codes"] == [0, 2, 2, 2]
    assert "plan: single" in shown and "single: {count_only: all}" in shown
    assert "wanted one of 'ddp', 'fsdp2', 'deepspeed', 'megatron', 'single'; did you mean 'single'?" in said
    assert "parallel.single.count: unknown key; did you mean 'count_only'?" in said
    assert "parallel.plan 'single' is for one rank, found 2; set parallel.plan=ddp" in said


def test_without_the_line_the_plan_is_not_known(tmp_path: Path) -> None:
    done = program(tmp_path, "-m", "afm_scale", "show", *RECIPE)
    assert done.returncode == 2 and "found 'single'" in done.stderr
