"""A signal that one rank sends itself in the middle of its first step, or of a save: all save, and nothing is torn."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afm_scale.checkpoint import manager
from afm_scale.checkpoint.manifest import newest_complete, problem_with, visible_checkpoints
from afm_scale.checkpoint.tensors import digest
from afm_scale.objectives.afm import AdversarialFlow
from tests.program import SMALL_AFM, end, train_forked

STEPS = 24
SMALL = (*SMALL_AFM, f"loop.steps={STEPS}", "checkpoint.every_steps=4", "checkpoint.keep_last=9")


def sent_at_the_first_call_of(owner: Any, name: str, number: signal.Signals) -> None:
    """The real function goes on a moment after the signal, so that its handlers run while it is under way."""
    original, calls = getattr(owner, name), []

    def with_a_signal(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            os.kill(os.getpid(), number)
            time.sleep(0.2)
        return original(*args, **options)

    setattr(owner, name, with_a_signal)


def in_the_first_step() -> None:
    sent_at_the_first_call_of(AdversarialFlow, "loss", signal.SIGTERM)


def as_tensors_are_written() -> None:
    sent_at_the_first_call_of(manager, "Writer", signal.SIGINT)


def before_a_save_is_whole() -> None:
    sent_at_the_first_call_of(manager, "write_manifest", signal.SIGUSR1)


INSTANTS: dict[str, tuple[int, Callable[[], None]]] = {
    "SIGTERM": (1, in_the_first_step), "SIGINT": (1, as_tensors_are_written), "SIGUSR1": (0, before_a_save_is_whole),
}


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_signal_in_the_first_step_and_in_a_save_ends_in_a_whole_save_that_goes_on_bit_for_bit(tmp_path: Path) -> None:
    undisturbed = train_forked(SMALL, tmp_path / "undisturbed", ranks=2)
    stopped = {
        name: train_forked(SMALL, tmp_path / name, ranks=2, first={rank: first})
        for name, (rank, first) in INSTANTS.items()
    }
    again = {}
    try:
        for name, process in stopped.items():
            code, _, stderr = end(process, timeout=400)
            assert code == 75 and "Traceback" not in stderr, (name, stderr)
            (step,) = map(int, re.findall(rf"stopped by {name} and saved at step (\d+)", stderr))
            assert step <= 2 if name == "SIGTERM" else 4 <= step < STEPS, (name, step)
            checkpoints = tmp_path / name / "checkpoints"
            found = [path for _, path in visible_checkpoints(checkpoints)]
            assert [problem_with(path) for path in found] == [None] * len(found)
            newest = newest_complete(checkpoints)
            assert newest is not None and newest.name == f"step_{step:08d}"
            assert not list(checkpoints.glob(".step_*"))
            again[name] = train_forked(SMALL, tmp_path / name, ranks=2)
        for name, process in again.items():
            code, _, stderr = end(process, timeout=400)
            assert code == 0 and "resumed at step" in stderr, (name, stderr)
        assert end(undisturbed, timeout=400)[0] == 0
    finally:
        for process in (undisturbed, *stopped.values(), *again.values()):
            process.kill()
    digests = {digest(tmp_path / name / "checkpoints" / f"step_{STEPS:08d}") for name in ("undisturbed", *INSTANTS)}
    assert len(digests) == 1
