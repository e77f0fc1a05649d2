"""The style that pyproject.toml asks for, over the whole repository."""

from __future__ import annotations

import subprocess
import sys

from tests.program import ROOT


def test_ruff_finds_nothing() -> None:
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr
