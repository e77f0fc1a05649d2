"""The sums of a checkpoint's files: each flipped byte is found, by each reader and on all ranks alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.manifest import MANIFEST_NAME, SUMS_NAME, read_manifest, resolve_checkpoint
from afm_scale.checkpoint.sums import compare, share_of
from afm_scale.checkpoint.tensors import compare_on_all, digest, load_into, read_tensors
from afm_scale.core.errors import CheckpointError, TornError
from afm_scale.run.checkpoints import open_checkpoint
from tests.checkpoints import flip, write_manifest_text
from tests.ranks import run_ranks

from .test_card import CARD, OLD

TENSORS = {"average.weight": torch.arange(12.0).view(3, 4), "generator.bias": torch.ones(5)}


def saved(folder: Path, *steps: int, rank: int = 0, world_size: int = 1, **config: object) -> CheckpointManager:
    manager = CheckpointManager(
        folder, CheckpointConfig(**{"every_steps": 1, **config}), rank=rank, world_size=world_size, description={},
        card=CARD,
    )
    for step in steps:
        manager.save(step, {name: tensor + step for name, tensor in TENSORS.items()}, {"step": step})
    manager.close()
    return manager


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    saved(folder, 1)
    return folder / "step_00000001"


def filled(path: Path) -> object:
    return load_into(path, {name: torch.empty_like(tensor) for name, tensor in TENSORS.items()})


READERS: list[Callable[[Path], object]] = [read_tensors, digest, filled, compare_on_all, open_checkpoint]
FILES = [".metadata", "__0_0.distcp", MANIFEST_NAME, SUMS_NAME]


def test_the_files_of_a_checkpoint_are_those_that_are_walked_over(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_flipped_byte_anywhere_is_found_by_every_reader(
    read: Callable[[Path], object], name: str, whole: Path, tmp_path: Path
) -> None:
    read(whole)
    size = (whole / name).stat().st_size
    for place in sorted({0, 1, size // 3, size // 2, size - 2, size - 1}):
        damaged = shutil.copytree(whole, tmp_path / f"{place}" / whole.name)
        flip(damaged / name, place)
        with pytest.raises(TornError, match="damaged|torn") as told:
            read(damaged)
        assert str(damaged) in str(told.value) and "use an older checkpoint" in str(told.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(name: str, whole: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(whole, tmp_path / whole.name)
    (damaged / name).unlink()
    with pytest.raises(TornError, match=name):
        read_tensors(damaged)


def test_a_person_can_check_all_files_by_hand(whole: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(whole, tmp_path / whole.name)
    command = ["sha256sum", "--strict", "-c", SUMS_NAME]
    done = subprocess.run(command, cwd=damaged, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(FILES) - 1
    flip(damaged / "__0_0.distcp", 700)
    assert subprocess.run(command, cwd=damaged, capture_output=True, timeout=60).returncode == 1


def test_a_manifest_without_the_sum_of_a_file_is_refused(whole: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(whole, tmp_path / whole.name)
    content = json.loads((damaged / MANIFEST_NAME).read_text())
    del content["sha256"][".metadata"]
    write_manifest_text(damaged, json.dumps(content))
    with pytest.raises(CheckpointError, match="is not what manifest.json says"):
        read_manifest(damaged)


def test_older_checkpoints_have_no_sums_and_are_read() -> None:
    path = resolve_checkpoint(OLD / "afm")
    assert read_manifest(path).sha256 is None
    assert read_tensors(path, "average.")


def test_the_ranks_share_all_files_between_them() -> None:
    files = {"a": 100, "b": 60, "c": 40, "d": 10, "e": 0}
    shares = [share_of(files, rank, 2) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(files)
    assert [sum(files[name] for name in share) for share in shares] == [110, 100]


def _told_of_a_file_that_one_rank_compares(folder: Path) -> list[str]:
    rank = dist.get_rank()
    saved(folder, 1, rank=rank, world_size=2)
    path, told = folder / "step_00000001", []
    compare(path, read_manifest(path).sha256)
    target = {name: torch.empty_like(tensor) for name, tensor in TENSORS.items()}
    load_into(path, target)
    told.append(str({name: tensor.tolist() for name, tensor in target.items()}))
    for name in sorted(read_manifest(path).files):
        dist.barrier()
        if rank == 0:
            flip(path / name, 300)
        dist.barrier()
        for read in (filled, compare_on_all):
            with pytest.raises(TornError, match="has SHA-256") as error:
                read(path)
            told.append(str(error.value))
        dist.barrier()
        if rank == 0:
            flip(path / name, 300)
    return told


def test_what_one_rank_finds_is_told_on_all(tmp_path: Path) -> None:
    first, second = run_ranks(2, _told_of_a_file_that_one_rank_compares, tmp_path)
    assert first == second and first[0] == str({name: (tensor + 1).tolist() for name, tensor in TENSORS.items()})
    assert len(first) == 7 and all(name in " ".join(first) for name in (".metadata", "__0_0.distcp", "__1_0.distcp"))


def test_a_damaged_checkpoint_stands_in_no_other_ones_place_when_old_ones_are_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    flip(tmp_path / "step_00000003" / "__0_0.distcp", 700)
    saved(tmp_path, 4, keep_last=2)  # by a process that has loaded none of them
    assert steps_in(tmp_path) == [2, 3, 4]
    manager = saved(tmp_path)
    manager.note(tmp_path / "step_00000004", whole=False)
    assert manager.latest() == tmp_path / "step_00000003"  # which looks complete, and was not tried


class LyingDisk:
    """Gives back another byte than was written, once what was written is no more in memory: a patch of os."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part_of_name: str) -> None:
        self.on, self.asked, self._part = True, 0, part_of_name
        monkeypatch.setattr(os, "posix_fadvise", self._advise)

    def _advise(self, descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        self.asked += 1
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.on and self._part in path.name:
            flip(path, path.read_bytes().find(torch.ones(5).add(2).numpy().tobytes()))


@pytest.mark.parametrize("part", [".distcp", ".metadata"])
def test_a_disk_that_gives_back_something_else_is_found_before_older_checkpoints_are_removed(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)
    disk = LyingDisk(monkeypatch, part)
    manager = saved(tmp_path, keep_last=1)
    manager.save(2, {name: tensor + 2 for name, tensor in TENSORS.items()}, {"step": 2})
    with pytest.raises(CheckpointError, match="step 2 was read back and is not what rank 0 has in memory.*faulty disk"):
        manager.wait()
    assert steps_in(tmp_path) == [1]
    disk.on = False
    manager.save(2, {name: tensor + 2 for name, tensor in TENSORS.items()}, {"step": 2})
    manager.close()
    assert steps_in(tmp_path) == [2] and torch.equal(read_tensors(tmp_path / "step_00000002")["generator.bias"],
                                                     TENSORS["generator.bias"] + 2)


@pytest.mark.parametrize(("verify", "read_back"), [("first", 1), ("every", 3), ("never", 0)])
def test_as_many_saves_are_read_back_as_wanted(
    verify: str, read_back: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = LyingDisk(monkeypatch, "none")
    saved(tmp_path, 1, 2, 3, verify=verify)
    assert disk.asked == 2 * read_back  # the files of one rank


def _told_of_the_disk_of_rank_1(folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            LyingDisk(patch, "__1_0")
        with pytest.raises(CheckpointError) as error:
            saved(folder, 2, rank=dist.get_rank(), world_size=2)
    dist.barrier()
    assert list(folder.glob("step_*")) == []
    return str(error.value)


def test_the_disk_of_one_rank_is_told_of_on_all(tmp_path: Path) -> None:
    first, second = run_ranks(2, _told_of_the_disk_of_rank_1, tmp_path)
    assert first == second and "read back and is not what rank 1 has in memory" in first


def test_the_sum_is_of_the_bytes_that_were_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def spoil(descriptor: int) -> None:
        sync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.suffix == ".distcp":
            flip(path, 700)

    monkeypatch.setattr(os, "fsync", spoil)
    saved(tmp_path, 2, verify="never")
    with pytest.raises(TornError, match="__0_0.distcp has SHA-256"):
        read_tensors(tmp_path / "step_00000002")
