"""A run that was killed, stopped and moved to other ranks ends exactly as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afm_scale.checkpoint.manifest import read_manifest, resolve_checkpoint
from afm_scale.checkpoint.tensors import digest, read_tensors
from afm_scale.core.errors import EXIT_DONE, EXIT_GO_ON, EXIT_STOPPED_BY_SIGNAL

from .program import SMALL_AFM, SMALL_CLASSIFICATION, SMALL_FLOW_MATCHING, end, train

pytestmark = pytest.mark.slow

ALONE = ("loop.steps=80", "checkpoint.every_steps=10", "checkpoint.keep_last=3", "hooks.metrics.every_steps=1")
TOGETHER = (
    "loop.steps=30", "checkpoint.every_steps=5", "checkpoint.keep_last=100", "hooks.metrics.every_steps=1",
    "parallel.precision=fp64",
)


def finish(process: subprocess.Popen[str]) -> None:
    code, _, stderr = end(process)
    assert code == EXIT_DONE, stderr
    assert "Warning" not in stderr


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool], timeout: float = 90) -> None:
    """Raises if the process ends first: then the test would disturb nothing."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; a run that is writing may have a part of one more."""
    file = folder / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_step(folder: Path) -> int:
    return max((row["step"] for row in rows(folder)), default=0)


def wait_until_it_goes_on(process: subprocess.Popen[str], folder: Path, chance: random.Random) -> None:
    """Some steps further than any process before, and some part of a step."""
    target = last_step(folder) + chance.randint(2, 6)
    wait_until(process, lambda: last_step(folder) >= target)
    time.sleep(chance.uniform(0, 0.03))


def wait_until_it_saves(process: subprocess.Popen[str], folder: Path) -> None:
    known = set((folder / "checkpoints").glob(".step_*.partial-*"))  # left by a kill, removed at the next start
    wait_until(process, lambda: bool(set((folder / "checkpoints").glob(".step_*.partial-*")) - known))


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """Process ids of the launcher's ranks."""
    task = Path(f"/proc/{launcher.pid}/task")
    children = [int(pid) for thread in task.iterdir() for pid in (thread / "children").read_text().split()]
    return [pid for pid in children if b"afm_scale" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def assert_stopped_and_saved(process: subprocess.Popen[str], folder: Path) -> None:
    """The exit code asks for another start, and nothing of what was done is lost."""
    code, _, stderr = end(process)
    assert code == EXIT_STOPPED_BY_SIGNAL, stderr
    step = last_step(folder)
    assert f"stopped by SIGTERM and saved at step {step};" in stderr
    assert read_manifest(resolve_checkpoint(folder)).step == step


def assert_same_run(folder: Path, undisturbed: Path, steps: int) -> None:
    """Bit for bit: every tensor, the state beside them, and every value of every step in the metrics, each once."""
    found, wanted = resolve_checkpoint(folder), resolve_checkpoint(undisturbed)
    assert read_manifest(found).step == steps
    assert read_manifest(found).scalars == read_manifest(wanted).scalars
    assert digest(found) == digest(wanted)
    assert [row["step"] for row in rows(folder)] == list(range(1, steps + 1))
    assert values(folder) == values(undisturbed)


def values(folder: Path) -> list[dict[str, Any]]:
    """The metrics without those that are about time."""
    about_time = {"images_per_second", "seconds_per_step", "data_wait_share", "seconds"}
    return [{name: value for name, value in row.items() if name not in about_time} for row in rows(folder)]


def test_killed_and_stopped_at_any_instant_an_adversarial_run_ends_the_same(tmp_path: Path) -> None:
    folder, chance = tmp_path / "disturbed", random.Random(0)
    undisturbed = train(SMALL_AFM, tmp_path / "undisturbed", *ALONE)
    finish(undisturbed)

    process = train(SMALL_AFM, folder, *ALONE)
    wait_until(process, lambda: last_step(folder) > 10)
    wait_until_it_goes_on(process, folder, chance)
    process.kill()
    end(process)

    process = train(SMALL_AFM, folder, *ALONE)
    wait_until_it_goes_on(process, folder, chance)
    wait_until_it_saves(process, folder)
    process.kill()
    end(process)

    process = train(SMALL_AFM, folder, *ALONE)
    wait_until_it_goes_on(process, folder, chance)
    process.terminate()
    assert_stopped_and_saved(process, folder)

    finish(train(SMALL_AFM, folder, *ALONE))
    assert_same_run(folder, tmp_path / "undisturbed", steps=80)
    assert not list((folder / "checkpoints").glob(".step_*"))


@pytest.mark.parametrize("recipe", [SMALL_FLOW_MATCHING, SMALL_CLASSIFICATION], ids=lambda recipe: recipe[0])
def test_killed_while_it_saves_a_run_of_one_player_ends_the_same(recipe: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "disturbed"
    finish(train(recipe, tmp_path / "undisturbed", *ALONE))

    process = train(recipe, folder, *ALONE)
    wait_until(process, lambda: last_step(folder) > 20)
    wait_until_it_saves(process, folder)
    process.kill()
    end(process)

    finish(train(recipe, folder, *ALONE))
    assert_same_run(folder, tmp_path / "undisturbed", steps=80)


def test_recomputing_more_or_less_on_the_way_changes_no_bit(tmp_path: Path) -> None:
    deep = (*SMALL_AFM, "model.generator.repetitions=2", "hooks.metrics.every_steps=1", "checkpoint.every_steps=4")
    finish(train(deep, tmp_path / "plain", "loop.steps=12"))
    for steps, kind in ((4, "none"), (8, "selective"), (12, "per_repetition")):
        finish(train(deep, tmp_path / "changed", f"loop.steps={steps}", f"parallel.recompute={kind}"))
    assert_same_run(tmp_path / "changed", tmp_path / "plain", steps=12)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two ranks, sharded, in float64."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    finish(train(SMALL_AFM, folder, *TOGETHER, ranks=2))
    return folder


def test_a_sharded_run_survives_the_death_and_the_stop_of_launcher_and_ranks(sharded: Path, tmp_path: Path) -> None:
    folder, chance = tmp_path / "disturbed", random.Random(1)

    def disturb(stop: Callable[[subprocess.Popen[str]], None]) -> subprocess.Popen[str]:
        process = train(SMALL_AFM, folder, *TOGETHER, ranks=2)
        wait_until(process, lambda: last_step(folder) > 5)  # beyond the first checkpoint
        wait_until_it_goes_on(process, folder, chance)
        stop(process)
        return process

    end(disturb(lambda launcher: launcher.kill()))
    code, _, stderr = end(disturb(lambda launcher: os.kill(workers(launcher)[1], signal.SIGKILL)))
    assert code == EXIT_GO_ON, stderr
    (told,) = [line for line in stderr.splitlines() if line.startswith("error")]
    assert told.startswith("error: rank 1 of 2 has ended without a word"), stderr
    assert "run the same command again to go on from" in told and "Traceback" not in stderr
    assert_stopped_and_saved(disturb(lambda launcher: launcher.terminate()), folder)
    assert_stopped_and_saved(disturb(lambda launcher: os.kill(workers(launcher)[1], signal.SIGTERM)), folder)
    finish(train(SMALL_AFM, folder, *TOGETHER, ranks=2))
    assert_same_run(folder, sharded, steps=30)


def test_one_rank_goes_on_where_two_were(sharded: Path, tmp_path: Path) -> None:
    """Ten updates in float64 by one rank in four microbatches, from a checkpoint of two sharded ranks."""
    shutil.copytree(sharded / "checkpoints" / "step_00000010", tmp_path / "run" / "checkpoints" / "step_00000010")
    alone = ("loop.steps=20", "loop.accumulation=4", "parallel.plan=ddp")
    finish(train(SMALL_AFM, tmp_path / "run", *TOGETHER, *alone))
    found = read_tensors(tmp_path / "run" / "checkpoints" / "step_00000020")
    wanted = read_tensors(sharded / "checkpoints" / "step_00000020")
    before = read_tensors(sharded / "checkpoints" / "step_00000010")
    assert found.keys() == wanted.keys()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-9
    name = "generator.x_embedder.proj.weight"
    assert float((wanted[name] - before[name]).abs().max()) > 1e-4
