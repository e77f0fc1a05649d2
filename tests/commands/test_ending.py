"""Of an error that several ranks meet one of them speaks, and none is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from afm_scale.commands.ending import tell
from afm_scale.core.errors import CheckpointError, ConfigError
from tests.launched import free_port, words_of
from tests.program import ROOT, SMALL_AFM, ForkedProgram, end


def test_rank_0_speaks_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    began = time.monotonic()
    assert tell(ConfigError("found, wanted, do")) == 2
    assert time.monotonic() - began < 1
    assert capsys.readouterr().err == "error: found, wanted, do\n"


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID"])
def test_another_rank_speaks_of_an_error_of_its_own_after_waiting_for_rank_0(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "3")
    began = time.monotonic()
    assert tell(CheckpointError("torn"), patience=0.3) == 2
    assert time.monotonic() - began >= 0.3
    assert capsys.readouterr().err == "error on rank 3: torn\n"


def test_another_rank_leaves_it_to_rank_0_if_all_had_agreed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert tell(ConfigError("the same everywhere").of_all_ranks(), patience=0) == 2
    assert capsys.readouterr().err == ""


def test_the_launcher_passes_on_the_message_of_a_slow_rank_0() -> None:
    """Rank 0 is a second behind, longer than the launcher takes to see that a rank has ended."""
    script = (
        "import os, sys, time; time.sleep(2 * (os.environ['RANK'] == '0')); "
        "from afm_scale.__main__ import main; sys.exit(main(['show', 'nothing']))"
    )
    words = [
        sys.executable, str(ROOT / "launchers" / "torchrun.py"), "--standalone", "--nproc-per-node=2", "--no-python",
        sys.executable, "-c", script,
    ]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": "."}
    process = subprocess.Popen(words, cwd=ROOT, text=True, stdout=pipe, stderr=pipe, env=environment)
    code, _, stderr = end(process, timeout=60)
    assert code == 2
    assert stderr.count("error: ") == 1 and "on rank" not in stderr


def started(rank: int, port: int, *words: str) -> ForkedProgram:
    return ForkedProgram(["train", *words], {**os.environ, **words_of(rank, 2, port)})


def test_of_two_ranks_that_refuse_at_different_times_one_speaks() -> None:
    """Without a launcher, which would end the later one. In the third pair rank 0 has met no mistake, and waits."""
    wrong, right = ("digits_afm", "loop.steps=x"), (*SMALL_AFM, "parallel.device=cpu", "run.folder=/dev/null/x")
    ports = [free_port() for _ in range(3)]
    first = [started(0, ports[0], *wrong), started(1, ports[1], *wrong), started(0, ports[2], *right)]
    time.sleep(3)
    second = [started(1, ports[0], *wrong), started(0, ports[1], *wrong), started(1, ports[2], *wrong)]
    for pair in zip(first, second, strict=True):
        ends = [end(process, timeout=60) for process in pair]
        told = [line for _, _, stderr in ends for line in stderr.splitlines()]
        assert [code for code, _, _ in ends] == [2, 2] and len(told) == 1 and "loop.steps: found 'x'" in told[0], ends
