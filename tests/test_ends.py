"""A run ends as its work decides, whatever its folder is called and whoever still listens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.test_screen import closed_pipe
from tests.program import ROOT, SMALL_AFM

SMALL = (*SMALL_AFM, "loop.steps=2", "checkpoint.every_steps=2", "parallel.device=cpu")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_run_without_a_reader_in_an_ascii_locale_ends_well_in_an_odd_folder(tmp_path: Path) -> None:
    folder, screen = tmp_path / "sweep[" / "final] \u00e9", closed_pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "afm_scale", "train", *SMALL, f"run.folder='{folder}'"], cwd=ROOT, timeout=120,
            stdout=screen, stderr=screen, env={**os.environ, **ASCII}, check=False,
        )
    finally:
        os.close(screen)
    assert done.returncode == 0
    assert (folder / "summary.json").exists() and (folder / "checkpoints" / "step_00000002").is_dir()


THREADS_STAY = """
import sys, threading
from afm_scale.commands import ending
threading.Thread(target=threading.Event().wait).start()  # as the last one of the compiler's pool
def run(arguments):
    {does}
ending.run = run
ending.main()
"""


@pytest.mark.parametrize(("does", "code", "told"), [
    ("return 0", 0, ""),
    ("raise SystemExit", 0, ""),
    ("raise SystemExit(2)", 2, ""),
    ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ("raise OSError('no such luck')", 1, "OSError: no such luck\n"),
])
def test_the_process_leaves_threads_of_libraries_behind(does: str, code: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS_STAY.format(does=does)], cwd=ROOT, timeout=60, capture_output=True, text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.endswith(told) and bool(done.stderr) == bool(told)
