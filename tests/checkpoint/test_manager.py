"""Saving: what is on the disk afterwards, whatever happens meanwhile."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.manifest import read_manifest
from afm_scale.checkpoint.tensors import digest, read_tensors
from afm_scale.core.errors import CheckpointError, ConfigError
from afm_scale.core.typed import build
from tests.ranks import run_ranks


def manager_of(folder: Path, rank: int = 0, world_size: int = 1, **config: Any) -> CheckpointManager:
    config = {"every_steps": 1} | config
    return CheckpointManager(folder, CheckpointConfig(**config), rank=rank, world_size=world_size, description={})


def constant(step: int, num_elements: int = 10) -> dict[str, Tensor]:
    return {"a.weight": torch.full((num_elements,), float(step)), "a.bias": torch.tensor(float(step))}


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Writing a longer file fails in this process with errno EFBIG, as a full disk does with ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(3, 5).t(),
        "half": torch.randn(4).to(torch.bfloat16),
        "double": torch.randn(2, 1, 2, dtype=torch.float64),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "nothing": torch.empty(0, 4),
        "part": torch.arange(100.0)[10:20],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    manager = manager_of(tmp_path)
    manager.save(5, tensors, {"step": 5, "rate": 0.1, "data": {"epoch": [1, 2]}})
    manager.close()
    path = manager.latest()
    assert path == tmp_path / "step_00000005"
    loaded = read_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    assert read_manifest(path).scalars == {"step": 5, "rate": 0.1, "data": {"epoch": [1, 2]}}


def test_the_values_saved_are_those_of_the_moment_of_saving(tmp_path: Path) -> None:
    tensors, scalars = constant(1, num_elements=2_000_000), {"data": {"position": 1}}
    manager = manager_of(tmp_path)
    manager.save(1, tensors, scalars)
    for tensor in tensors.values():
        tensor.fill_(-1)
    scalars["data"]["position"] = -1
    manager.wait()
    path = tmp_path / "step_00000001"
    assert all(bool((tensor == 1).all()) for tensor in read_tensors(path).values())
    assert read_manifest(path).scalars == {"data": {"position": 1}}


def test_a_save_completes_without_the_caller(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    manager.save(1, constant(1), {})
    deadline = time.monotonic() + 30
    while not (tmp_path / "step_00000001").exists() and time.monotonic() < deadline:
        manager.poll()
        time.sleep(0.01)
    assert steps_in(tmp_path) == [1]


def test_a_synchronous_save_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, asynchronous=False)
    manager.save(1, constant(1), {})
    assert steps_in(tmp_path) == [1]


def test_the_newest_are_kept_and_every_so_many_steps(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, keep_last=2, keep_every_steps=4)
    for step in range(1, 11):
        manager.save(step, constant(step), {})
    manager.close()
    assert steps_in(tmp_path) == [4, 8, 9, 10]


def test_torn_checkpoints_are_not_counted_among_those_kept(tmp_path: Path) -> None:
    manager = manager_of(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        manager.save(step, constant(step), {})
    manager.close()
    (tmp_path / "step_00000003" / "manifest.json").unlink()
    torn: list[Path] = []
    assert manager.latest(lambda path, reason: torn.append(path)) == tmp_path / "step_00000002"
    assert torn == [tmp_path / "step_00000003"]
    manager.save(4, constant(4), {})
    manager.close()
    assert steps_in(tmp_path) == [2, 3, 4]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    manager.save(1, constant(1), {})
    manager.save(1, constant(2), {})
    manager.close()
    assert torch.equal(read_tensors(tmp_path / "step_00000001")["a.bias"], torch.tensor(2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_the_next_start_clears_what_a_kill_left(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    manager.save(1, constant(1), {})
    manager.save(2, constant(2), {})
    manager.close()
    os.rename(tmp_path / "step_00000001", tmp_path / ".step_00000001.replaced-0")  # killed before the second rename
    (tmp_path / ".step_00000002.replaced-0").mkdir()  # killed after it
    (tmp_path / ".step_00000003.partial-0").mkdir()
    (tmp_path / ".step_00000000.pruned-0").mkdir()
    manager = manager_of(tmp_path)
    assert (tmp_path / "step_00000001").exists()
    manager.clear_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_a_failed_write_names_the_cause_and_leaves_the_rest_intact(tmp_path: Path) -> None:
    manager = manager_of(tmp_path)
    manager.save(1, constant(1), {})
    manager.close()
    before = digest(tmp_path / "step_00000001")
    with largest_file(1_000_000):
        manager.save(2, constant(2, num_elements=1_000_000), {})
        with pytest.raises(CheckpointError, match=r"step 2 could not .*File too large.*step_00000001.*free some space"):
            manager.wait()
    manager.poll()  # said once
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert digest(tmp_path / "step_00000001") == before
    manager.save(3, constant(3), {})
    manager.close()
    assert manager.latest() == tmp_path / "step_00000003"


def test_a_failed_save_is_told_by_the_next_one(tmp_path: Path) -> None:
    manager = manager_of(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("in the way")
    manager.save(1, constant(1), {})
    with pytest.raises(CheckpointError, match="Not a directory.*There is no complete one yet"):
        manager.save(2, constant(2), {})


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="file cannot be written: File exists; something else has a name"):
        manager_of(tmp_path / "file")


@pytest.mark.parametrize("wrong", [{"every_steps": 0}, {"keep_last": 0}, {"keep_every_steps": 0}])
def test_intervals_start_at_one(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(CheckpointConfig, {"every_steps": 1} | wrong, ("checkpoint",))


def save_where_rank_1_has_no_space(folder: Path) -> tuple[str, list[int], list[int]]:
    rank = torch.distributed.get_rank()
    manager = manager_of(folder, rank=rank, world_size=2)
    message, num_elements = "", 500_000
    with largest_file(1_000_000 if rank == 1 else 2**40):
        # Plain tensors are shared out over the ranks, so each has some to write.
        manager.save(1, {name: torch.ones(num_elements) for name in "abcd"}, {})
        try:
            manager.wait()
        except CheckpointError as error:
            message = str(error)
    torch.distributed.barrier()
    after_failure = [int(path.name[6:14]) for path in folder.glob(".step_*")] + steps_in(folder)
    torch.distributed.barrier()  # the other rank has looked too, before there is anything new to be seen
    manager.save(2, constant(2), {})
    manager.wait()
    return message, after_failure, steps_in(folder)


def test_a_failure_on_one_rank_is_told_on_all_and_the_next_save_works(tmp_path: Path) -> None:
    for message, after_failure, after_success in run_ranks(2, save_where_rank_1_has_no_space, tmp_path):
        assert "step 1 could not be written" in message and "File too large" in message
        assert after_failure == []
        assert after_success == [2]  # waiting means: under its final name, on every rank


KILL_LOOP = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.manifest import problem_with, visible_checkpoints
from afm_scale.checkpoint.tensors import read_tensors

folder, seconds, draw = Path(sys.argv[1]), float(sys.argv[2]), random.Random(0)

def open_manager():
    config = CheckpointConfig(every_steps=1, keep_last=2)
    manager = CheckpointManager(folder, config, rank=0, world_size=1, description={})
    manager.clear_leftovers()
    return manager

def save_for_ever():
    manager = open_manager()
    step = max([step for step, _ in visible_checkpoints(folder)], default=1)  # saves the newest step again first
    while True:
        manager.save(step, {name: torch.full((20_000,), float(step)) for name in "abc"}, {"step": step})
        step += 1

newest, kills, unfinished, end = 0, 0, 0, time.monotonic() + seconds
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        save_for_ever()
    time.sleep(draw.uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    unfinished += bool(list(folder.glob(".step_*")))
    for _, path in visible_checkpoints(folder):
        assert problem_with(path) is None, problem_with(path)
    manager = open_manager()
    for step, path in visible_checkpoints(folder):
        assert all(bool((tensor == step).all()) for tensor in read_tensors(path).values()), path
    found = max([step for step, _ in visible_checkpoints(folder)], default=0)
    assert found >= newest, f"step {newest} was complete, now the newest is {found}"
    newest = found
    assert not list(folder.glob(".step_*"))
print(kills, unfinished, newest)
"""


SAVE_AND_LEAVE = """
import sys
from pathlib import Path
import torch
from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager

config = CheckpointConfig(every_steps=1)
manager = CheckpointManager(Path(sys.argv[1]), config, rank=0, world_size=1, description={})
manager.save(1, {name: torch.ones(1_000_000) for name in "abcdefgh"}, {})
sys.exit(3)
"""


def test_a_process_that_ends_while_saving_finishes_the_save_and_keeps_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SAVE_AND_LEAVE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (3, "")
    assert steps_in(tmp_path) == [1]


def test_a_kill_at_any_instant_leaves_complete_checkpoints_only(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL_LOOP, str(tmp_path), "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    kills, unfinished, newest = map(int, done.stdout.split())
    assert kills >= 5 and unfinished >= 2 and newest >= 5, done.stdout  # the kills did fall into saves
