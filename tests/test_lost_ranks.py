"""Two ranks train and one is stopped or killed: all end in time, and one message says why."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from afm_scale.checkpoint.manifest import newest_complete
from tests.launched import free_port, words_of
from tests.program import SMALL_AFM, ForkedProgram

LIMIT = 8  # parallel.timeout_seconds
PATIENCE = 60.0  # for a busy machine to start and end two processes


class Run:
    """The ranks of a run, started without a launcher."""

    def __init__(self, folder: Path, save_every: int) -> None:
        self.folder = folder
        self._save_every = save_every
        port = free_port()
        self.ranks = {rank: self._start(words_of(rank, 2, port)) for rank in (0, 1)}

    def _start(self, words: dict[str, str]) -> ForkedProgram:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in words.items():
                patch.setenv(name, value)
            return ForkedProgram([
                "train", *SMALL_AFM, f"run.folder={self.folder}", "parallel.device=cpu", "loop.steps=1000000",
                f"parallel.timeout_seconds={LIMIT}", "hooks.metrics.every_steps=1",
                f"checkpoint.every_steps={self._save_every}",
            ])

    def wait_for_steps(self, steps: int = 2) -> None:
        rows, until = self.folder / "metrics.jsonl", time.monotonic() + PATIENCE
        while not rows.exists() or rows.read_text().count("\n") < steps:
            ended = {rank: process.communicate() for rank, process in self.ranks.items() if process.poll() is not None}
            assert not ended and time.monotonic() < until, ended
            time.sleep(0.05)

    def wait_for_checkpoint(self) -> None:
        until = time.monotonic() + PATIENCE
        while newest_complete(self.folder / "checkpoints") is None:
            assert time.monotonic() < until
            time.sleep(0.05)

    def ends(self) -> tuple[dict[int, int], dict[int, str]]:
        """The exit codes and what was said, by ranks."""
        said = {rank: process.communicate(timeout=PATIENCE)[1] for rank, process in self.ranks.items()}
        return {rank: process.returncode for rank, process in self.ranks.items()}, said

    def kill(self) -> None:
        for process in self.ranks.values():
            process.kill()


def lost(folder: Path, number: signal.Signals, stack: ExitStack, save_every: int) -> list[Run]:
    """Two runs of two ranks that train; in the first rank 0 is given the signal, in the second rank 1."""
    started = [Run(folder / f"{number.name}_{rank}", save_every) for rank in (0, 1)]
    for run in started:
        stack.callback(run.kill)
    for run in started:
        run.wait_for_steps()
        if save_every < 10:
            run.wait_for_checkpoint()
    time.sleep(0.5)  # a rank says every moment where it is, not at every step
    for rank, run in enumerate(started):
        os.kill(run.ranks[rank].pid, number)
    return started


def found_to_end(started: list[Run], told: str, code: int) -> None:
    for rank, run in enumerate(started):
        other = 1 - rank
        codes, said = run.ends()
        assert codes == {rank: -signal.SIGKILL, other: code}, "\n".join(said.values())
        errors = [line for text in said.values() for line in text.splitlines() if line.startswith("error")]
        assert len(errors) == 1 and errors[0] in said[other].splitlines(), "\n".join(said.values())
        assert errors[0].startswith(f"error: rank {rank} of 2 {told}")
        assert "it was last at step" in errors[0] and f"Rank {other} waited for it at step" in errors[0]
        advice = "to go on from" if code == 75 else "; there is no checkpoint to go on from"
        assert advice in errors[0]
        assert "Traceback" not in "".join(said.values())
        # Of the error that it met, or of where it stood: the rank's threads learn of the loss side by side.
        assert '  File "' in (run.folder / f"rank_{other:05d}.log").read_text()


def test_a_rank_that_is_stopped_or_killed_is_named_with_its_last_step(tmp_path):
    """Those that are killed have ended while the others still wait for the one that is stopped.

    Of those, each has made a checkpoint since it was started: starting it again goes on.
    """
    with ExitStack() as stack:
        stopped = lost(tmp_path, signal.SIGSTOP, stack, save_every=2)
        began = time.monotonic()
        killed = lost(tmp_path, signal.SIGKILL, stack, save_every=1000000)
        found_to_end(killed, "has ended without a word", code=1)
        found_to_end(stopped, "is stopped (SIGSTOP) and does not answer", code=75)
        assert time.monotonic() - began < LIMIT + 40
