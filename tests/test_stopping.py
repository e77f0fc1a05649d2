"""A signal before the first step ends a run at once, with 75 only where a checkpoint is to go on from."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.checkpoint.manifest import newest_complete, problem_with, visible_checkpoints
from tests.launched import free_port, words_of
from tests.program import ROOT, SMALL_AFM, ForkedProgram, end, train

ONE_STEP = ("loop.steps=1", "checkpoint.every_steps=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *SMALL_AFM, *ONE_STEP, "parallel.device=cpu", f"run.folder={folder}"]) == 0
    return folder


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {seconds} seconds"
        time.sleep(0.02)


def has_handler(pid: int, number: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> number - 1 & 1)


def listens(port: int) -> bool:
    with socket.socket() as other:
        return other.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(("number", "saved"), [
    (signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGHUP, True), (signal.SIGUSR1, True),
])
def test_a_run_that_waits_for_another_rank_ends_at_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, saved: bool
) -> None:
    """The main thread stands inside of torch all the while."""
    folder = Path(shutil.copytree(trained, tmp_path / "run")) if saved else tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in around.items():
        monkeypatch.setenv(name, str(value))
    process = train(SMALL_AFM, folder, "loop.steps=9")
    try:
        wait_until(lambda: listens(port))
        process.send_signal(number)
        code, _, stderr = end(process, timeout=20)
    finally:
        process.kill()
    if saved:
        newest = folder / "checkpoints" / "step_00000001"
        wanted = 75, f"stopped by {number.name}; {newest} is whole: run the same command again to go on from it\n"
    else:
        told = "before there was a checkpoint: nothing is there to go on from"
        wanted = 128 + number, f"stopped by {number.name} {told}\n"
    assert (code, stderr) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_from_the_first_second_a_hang_up_is_ignored_under_nohup_and_a_signal_understood(tmp_path: Path) -> None:
    """The launcher is still importing torch, and its workers are not there."""
    words = [
        sys.executable, "launchers/torchrun.py", "--standalone", "--nproc-per-node=2", "-m", "afm_scale", "train",
        *SMALL_AFM, "parallel.device=cpu", f"run.folder={tmp_path / 'run'}",
    ]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(["nohup", *words], cwd=ROOT, stdout=stderr, stderr=stderr, env=os.environ)
        try:
            wait_until(lambda: has_handler(process.pid, signal.SIGTERM))
            assert not has_handler(process.pid, signal.SIGHUP)
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=120)
        finally:
            process.kill()
    assert code == 128 + signal.SIGTERM
    (line,) = [line for line in (tmp_path / "stderr").read_text().splitlines() if "nohup" not in line]
    assert line == "stopped by SIGTERM before there was a checkpoint: nothing is there to go on from"


MOMENTS = {
    "sampling": ("hooks.samples={every_steps: 1}",),
    "evaluation": ("hooks.evaluation={kind: digits, every_steps: 1}", "data.part=train"),
    "a save": ("checkpoint.every_steps=1", "checkpoint.keep_last=2"),
}


def test_a_signal_to_one_rank_while_all_sample_evaluate_or_save_is_seen_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is done at every step, so that it is under way most of the time."""
    runs: dict[str, list[ForkedProgram]] = {}
    for moment, settings in MOMENTS.items():
        port, words = free_port(), [*SMALL_AFM, f"run.folder={tmp_path / moment}", "parallel.device=cpu", *settings]
        runs[moment] = []
        for rank in (0, 1):
            for name, value in words_of(rank, 2, port).items():
                monkeypatch.setenv(name, value)
            runs[moment].append(ForkedProgram(["train", *words, "hooks.metrics.every_steps=1", "loop.steps=1000000"]))
    try:
        for moment, ranks in runs.items():
            rows = tmp_path / moment / "metrics.jsonl"
            wait_until(lambda rows=rows: rows.exists() and rows.read_text().count("\n") >= 2, seconds=180)
            ranks[1].send_signal(signal.SIGTERM)
        for moment, ranks in runs.items():
            ends = [end(rank, timeout=120) for rank in ranks]
            assert [code for code, _, _ in ends] == [75, 75], (moment, ends)
            told = [line for line in ends[0][2].splitlines() if line.startswith("stopped by SIGTERM and saved at ")]
            assert len(told) == 1 and "Traceback" not in ends[0][2] + ends[1][2], (moment, ends)
            newest = newest_complete(tmp_path / moment / "checkpoints")
            assert newest is not None and str(newest) in told[0]
            visible = [path.name for _, path in visible_checkpoints(tmp_path / moment / "checkpoints")]
            assert all(problem_with(newest.parent / name) is None for name in visible), visible
    finally:
        for rank in (rank for ranks in runs.values() for rank in ranks):
            rank.kill()
