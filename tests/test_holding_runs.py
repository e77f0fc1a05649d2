"""Two runs in one folder: the second is refused before it touches anything, and a killed one blocks nobody."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR

from .program import SMALL_AFM, end, train

ENDLESS = ("loop.steps=1000000", "checkpoint.every_steps=1000000", "hooks.metrics.every_steps=1")


def wait_for_steps(folder: Path, process: object) -> None:
    deadline = time.monotonic() + 60
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_run_in_a_folder_is_refused_and_one_after_a_kill_is_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    first = train(SMALL_AFM, folder, *ENDLESS)
    try:
        wait_for_steps(folder, first)
        half_written = folder / "checkpoints" / ".step_00000007.partial-of-the-first"
        half_written.mkdir()
        before = {path: path.stat().st_mtime_ns for path in (folder / "config.yaml", folder / "events.jsonl")}
        words = ["train", *SMALL_AFM, "loop.steps=1", "parallel.device=cpu", f"run.folder={folder}"]
        assert main(words) == EXIT_USER_ERROR
        stderr = capfd.readouterr().err
        assert f"held by process {first.pid} on " in stderr and "Traceback" not in stderr
        assert half_written.is_dir() and first.poll() is None
        assert before == {path: path.stat().st_mtime_ns for path in before}
    finally:
        first.kill()
        end(first)
    assert json.loads((folder / ".held").read_text())["pid"] == first.pid
    assert main(words) == EXIT_DONE
    assert not half_written.exists() and not (folder / ".held").exists()
