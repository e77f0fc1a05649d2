"""Which folders count as checkpoints, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.manifest import MANIFEST_NAME, SUMS_NAME, read_manifest, resolve_checkpoint
from afm_scale.core.errors import CheckpointError
from tests.checkpoints import write_manifest_text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with complete checkpoints of steps 1, 2 and 3."""
    config = CheckpointConfig(every_steps=1)
    manager = CheckpointManager(tmp_path / "checkpoints", config, rank=0, world_size=1, description={"config": {}})
    for step in (1, 2, 3):
        manager.save(step, {"weight": torch.full((2, 3), float(step))}, {"step": step})
    manager.close()
    return tmp_path


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def change_manifest(path: Path, **changes: object) -> None:
    write_manifest_text(path, json.dumps(json.loads((path / MANIFEST_NAME).read_text()) | changes))


def test_the_manifest_says_what_was_saved(run: Path) -> None:
    manifest = read_manifest(step_folder(run, 2))
    assert manifest.step == 2 and manifest.world_size == 1 and manifest.scalars == {"step": 2}
    assert {name: str(entry) for name, entry in manifest.tensors.items()} == {"weight": "[2, 3] float32"}
    assert manifest.tensors["weight"].num_bytes == 24
    assert manifest.description == {"config": {}}
    on_disk = {path.name: path.stat().st_size for path in step_folder(run, 2).iterdir()}
    assert manifest.files == {name: size for name, size in on_disk.items() if name not in (MANIFEST_NAME, SUMS_NAME)}


def test_a_run_means_its_newest_complete_checkpoint(run: Path) -> None:
    torn: list[tuple[Path, str]] = []
    assert resolve_checkpoint(run) == resolve_checkpoint(run / "checkpoints") == step_folder(run, 3)
    assert resolve_checkpoint(step_folder(run, 1)) == step_folder(run, 1)
    (step_folder(run, 3) / MANIFEST_NAME).unlink()
    data = next(step_folder(run, 2).glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1])
    assert resolve_checkpoint(run, lambda path, reason: torn.append((path, reason))) == step_folder(run, 1)
    assert [path for path, _ in torn] == [step_folder(run, 3), step_folder(run, 2)]
    assert "holds no manifest.json" in torn[0][1]
    assert f"{data.name} is {data.stat().st_size} bytes long, not {data.stat().st_size + 1} bytes" in torn[1][1]


def test_a_missing_file_is_named(run: Path) -> None:
    (step_folder(run, 3) / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"\.metadata is missing"):
        read_manifest(step_folder(run, 3))


def test_another_programs_manifest_is_refused(run: Path) -> None:
    change_manifest(step_folder(run, 3), format="something else")
    with pytest.raises(CheckpointError, match="was not written by this program"):
        read_manifest(step_folder(run, 3))


def test_a_newer_format_is_refused(run: Path) -> None:
    change_manifest(step_folder(run, 3), format_version=2)
    with pytest.raises(CheckpointError, match="has checkpoint format 2, this program reads format 1"):
        read_manifest(step_folder(run, 3))


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "\x80"])
def test_a_damaged_manifest_is_a_user_error(run: Path, damage: str) -> None:
    write_manifest_text(step_folder(run, 3), damage.encode("latin-1"))
    with pytest.raises(CheckpointError, match="damaged|not written by this program"):
        read_manifest(step_folder(run, 3))
    change_manifest(step_folder(run, 2), tensors=None)
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(step_folder(run, 2))


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="holds no manifest"):
        read_manifest(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        resolve_checkpoint(tmp_path)
