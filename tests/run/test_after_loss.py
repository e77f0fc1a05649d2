"""A run that lost a rank is to be started again where that goes on, and not for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.core.run_folder import RunFolder
from afm_scale.run.after_loss import after_loss
from tests.program import SMALL_AFM


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of step 2."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = (*SMALL_AFM, "loop.steps=2", "checkpoint.every_steps=2", "parallel.device=cpu", f"run.folder={folder}")
    assert main(["train", *settings]) == 0
    return folder / "checkpoints" / "step_00000002"


def run_of(folder: Path, starts: list[int], checkpoint: Path | None) -> RunFolder:
    folder.mkdir()
    events = [{"time": "-", "kind": "start", "step": step} for step in starts]
    events.append({"time": "-", "kind": "save", "step": 9})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if checkpoint is not None:
        shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name)
    return RunFolder(folder)


@pytest.mark.parametrize(("starts", "code"), [
    ([0], 75),  # this start has made it
    ([0, 2], 75),  # the one before has
    ([0, 2, 2], 1),  # neither of the last two has
    ([0, 0], 75),
    ([], 75),  # it never came to note its own start
    ([2], 1),  # moved here, and never got beyond
])
def test_a_checkpoint_newer_than_one_of_the_last_two_starts_is_gone_on_from(
    tmp_path: Path, checkpoint: Path, starts: list[int], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFM_SCALE_LAUNCHER_PID", raising=False)
    found, told = after_loss(run_of(tmp_path / "run", starts, checkpoint))
    assert found == code
    assert ("run the same command again" in told) == (code == 75) and "step_00000002" in told


def test_our_launcher_is_told_that_it_may_start_all_again(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFM_SCALE_LAUNCHER_PID", "1")
    assert after_loss(run_of(tmp_path / "run", [0], checkpoint))[0] == 76


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path, checkpoint: Path) -> None:
    assert after_loss(run_of(tmp_path / "none", [0], None)) == (1, "; there is no checkpoint to go on from")
    torn = run_of(tmp_path / "torn", [0], checkpoint)
    (torn.checkpoints / checkpoint.name / "manifest.json").unlink()
    assert after_loss(torn)[0] == 1


def test_a_damaged_log_of_events_is_told_and_nothing_is_started_again(tmp_path: Path, checkpoint: Path) -> None:
    damaged = run_of(tmp_path / "run", [0], checkpoint)
    damaged.events.write_text("no JSON\n{}\n")
    code, told = after_loss(damaged)
    assert code == 1 and "events.jsonl, line 1 is not JSON" in told
