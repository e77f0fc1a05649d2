"""Starts the program as a person would: `from tests.program import train`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Small enough that starting the process takes longer than training it.
SMALL_GENERATOR = ("model.generator.hidden_size=16", "model.generator.depth=2", "model.generator.num_heads=2")
SMALL_DISCRIMINATOR = tuple(text.replace("generator", "discriminator") for text in SMALL_GENERATOR)
QUIET = ("data.global_batch=8", "hooks.samples=null", "hooks.metrics.tensorboard=false", "report=null")
SMALL_AFM = ("digits_afm", *SMALL_GENERATOR, *SMALL_DISCRIMINATOR, *QUIET)
SMALL_CLASSIFIER = ("model.classifier.hidden_size=16", "model.classifier.num_heads=2")
SMALL_CLASSIFICATION = ("classifier_digits", *SMALL_CLASSIFIER, *QUIET)
SMALL_FLOW_MATCHING = ("digits_flow_matching", *SMALL_GENERATOR, *QUIET)


def start(*arguments: str | Path, ranks: int = 1) -> subprocess.Popen[str]:
    """`python -m afm_scale ARGUMENTS`, under our launcher if there are several ranks; output is read by `end`."""
    launcher = [str(ROOT / "launchers" / "torchrun.py"), "--standalone", f"--nproc-per-node={ranks}"]
    words = [sys.executable, *(launcher if ranks > 1 else ()), "-m", "afm_scale", *map(str, arguments)]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); the process is killed if it takes longer."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def run(*arguments: str | Path, ranks: int = 1) -> tuple[int, str, str]:
    return end(start(*arguments, ranks=ranks))


def train(recipe: Sequence[str], folder: Path, *overrides: str, ranks: int = 1) -> subprocess.Popen[str]:
    return start("train", *recipe, f"run.folder={folder}", "parallel.device=cpu", *overrides, ranks=ranks)
