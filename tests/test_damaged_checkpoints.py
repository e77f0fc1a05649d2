"""Damaged checkpoints as a person meets them: told by every command, passed over by runs, and never made worse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import afm_scale
from afm_scale.__main__ import main
from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.manifest import MANIFEST_NAME, SUMS_NAME
from afm_scale.checkpoint.tensors import digest
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR, CheckpointError
from afm_scale.core.run_folder import RunFolder
from afm_scale.run.config import FolderConfig
from afm_scale.run.start import start
from afm_scale.train.hooks.events import EventLog
from tests.checkpoints import flip
from tests.program import SMALL_AFM, SMALL_FLOW_MATCHING
from tests.ranks import run_ranks
from tests.train.hooks.small import small_plan, small_state

from .test_old_checkpoints import OLD, RUNS

SMALL = (
    *SMALL_FLOW_MATCHING, "objective.class_dropout=0.1", "model.generator.null_class=true", "parallel.device=cpu",
    "checkpoint.every_steps=1", "hooks.metrics.every_steps=1",
)
FILES = [".metadata", "__0_0.distcp", MANIFEST_NAME, SUMS_NAME]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, with a checkpoint of each. Tests that write copy it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *SMALL, "loop.steps=3", f"run.folder={folder}"]) == EXIT_DONE
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """The same run, to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "own"))


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def damage(path: Path, name: str) -> None:
    flip(path / name, (path / name).stat().st_size // 2)


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder, but the log of events."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*")) if path != RunFolder(folder).events
    }


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "inspect_checkpoint": lambda path, out: ["inspect_checkpoint", str(path)],
    "digest": lambda path, out: ["inspect_checkpoint", str(path), "--digest"],
    "sample": lambda path, out: ["sample", str(path), "--out", str(out), "--num", "1"],
    "evaluate": lambda path, out: [
        "evaluate", str(path), "--num", "20", "--features", "pixels", "--write-reference", str(out / "statistics.npz"),
    ],
    "resume_from": lambda path, out: [
        "train", *SMALL, "loop.steps=3", f"run.folder={out}", f"run.resume_from={path}",
    ],
    "initialise_from": lambda path, out: [
        "train", *SMALL, "loop.steps=0", f"run.folder={out}", f"run.initialise_from={path}",
    ],
    "a guide": lambda path, out: [
        "train", *SMALL_AFM, "parallel.device=cpu", "loop.steps=0", f"run.folder={out}", f"model.flow={path}",
        "objective.guidance={kind: velocity, weight: 1.0, low: 0.0, high: 0.5}",
    ],
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_damaged_checkpoint_by_one_line(
    command: str, name: str, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(step_folder(trained, 3), tmp_path / "checkpoint")
    damage(damaged, name)
    assert main(COMMANDS[command](damaged, tmp_path / "out")) == EXIT_USER_ERROR
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert str(damaged) in line and "damaged" in line
    assert not (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_falls_back_to_an_older_checkpoint_of_a_run(
    command: str, own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(step_folder(own, 3), "__0_0.distcp")
    damage(step_folder(own, 2), MANIFEST_NAME)
    capfd.readouterr()
    assert main(COMMANDS[command](own, tmp_path / "out")) == EXIT_DONE
    told = capfd.readouterr()
    assert all(str(step_folder(own, step)) in told.err for step in (2, 3))
    assert str(step_folder(own, 1)) in told.out + told.err or command in ("evaluate", "a guide")


def test_a_checkpoint_is_loaded_whole_or_not_at_all(own: Path) -> None:
    for step in (3, 2):
        damage(step_folder(own, step), "__0_0.distcp")
        with pytest.raises(CheckpointError, match="has SHA-256"):
            afm_scale.load(step_folder(own, step))
    assert afm_scale.load(own).step == 1
    damage(step_folder(own, 1), ".metadata")
    with pytest.raises(CheckpointError, match=r"none of its 3 is whole: .*Name another run"):
        afm_scale.load(own)


def test_a_run_goes_on_from_the_newest_whole_one_and_ends_as_if_nothing_had_been(
    trained: Path, own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(step_folder(own, 3), "__0_0.distcp")
    damage(step_folder(own, 2), ".metadata")
    assert main(["train", *SMALL, "loop.steps=3", f"run.folder={own}"]) == EXIT_DONE
    told = capfd.readouterr().err
    assert "resumed at step 1" in told and told.count("passed over torn") == 2
    events = list(RunFolder(own).read_events())
    torn = [(event["folder"], event["reason"]) for event in events if event["kind"] == "torn"]
    assert [folder for folder, _ in torn] == [str(step_folder(own, 3)), str(step_folder(own, 2))]
    assert "__0_0.distcp has SHA-256" in torn[0][1] and ".metadata has SHA-256" in torn[1][1]
    assert digest(step_folder(own, 3)) == digest(step_folder(trained, 3))
    assert [row["step"] for row in RunFolder(own).read_metrics()] == [1, 2, 3]


@pytest.mark.parametrize("names", [FILES[:3], ["missing"] * 3, [MANIFEST_NAME, "missing", SUMS_NAME]], ids=str)
def test_where_none_is_whole_the_run_stops_and_leaves_all_as_it_was(
    names: list[str], own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for step, name in zip((1, 2, 3), names, strict=True):
        if name == "missing":
            (step_folder(own, step) / MANIFEST_NAME).unlink()
        else:
            damage(step_folder(own, step), name)
    (own / "checkpoints" / ".step_00000004.partial-0").mkdir()
    before, events = content(own), RunFolder(own).events.read_bytes()
    for _ in range(2):
        assert main(["train", *SMALL, "loop.steps=5", f"run.folder={own}"]) == EXIT_USER_ERROR
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert "none of its 3 is whole" in line and "choose another run.folder" in line
        assert f"move {own / 'checkpoints'} away" in line
        assert content(own) == before
    after = RunFolder(own).events.read_bytes()
    assert after.startswith(events)
    assert [json.loads(row)["kind"] for row in after[len(events):].splitlines()] == ["torn"] * 6


def test_what_the_message_says_starts_over(own: Path) -> None:
    for step in (1, 2, 3):
        damage(step_folder(own, step), MANIFEST_NAME)
    (own / "checkpoints").rename(own.parent / "away")
    assert main(["train", *SMALL, "loop.steps=1", f"run.folder={own}"]) == EXIT_DONE
    assert [row["step"] for row in RunFolder(own).read_metrics()] == [1]


def _started(folder: Path) -> tuple[str, int, str]:
    """What one of the ranks says of where a run starts, whose checkpoints of steps 2 and 3 rank 0 damages."""
    plan = small_plan()
    state, events = small_state(plan), EventLog(folder / "events.jsonl", enabled=plan.rank == 0)

    def manager() -> CheckpointManager:
        return CheckpointManager(
            folder / "checkpoints", CheckpointConfig(every_steps=1), rank=plan.rank, world_size=plan.world_size,
            description={},
        )

    first = manager()
    for step in (1, 2, 3):
        state.step = step
        first.save(step, state.tensors(plan), state.scalars())
    first.close()
    if plan.rank == 0:
        damage(step_folder(folder, 3), "__1_0.distcp")
        damage(step_folder(folder, 2), SUMS_NAME)
    where = start(state, plan, manager(), FolderConfig(folder=folder), events)
    started_at = state.step
    if plan.rank == 0:
        damage(step_folder(folder, 1), "__0_0.distcp")
    with pytest.raises(CheckpointError) as error:
        start(state, plan, manager(), FolderConfig(folder=folder), events)
    return where, started_at, str(error.value)


def test_two_ranks_fall_back_alike(tmp_path: Path) -> None:
    first, second = run_ranks(2, _started, tmp_path)
    assert first == second and first[1] == 1
    assert "__1_0.distcp has SHA-256" in first[0] and "SHA256SUMS is not what" in first[0]
    assert "none of its 3 is whole" in first[2]
    events = list(RunFolder(tmp_path).read_events())
    assert [event["kind"] for event in events] == ["torn"] * 2 + ["start"] + ["torn"] * 3


def test_an_older_checkpoint_without_sums_is_used_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = "no checksums (older checkpoint)"
    assert main(["inspect_checkpoint", str(OLD / "afm")]) == EXIT_DONE
    assert words in capfd.readouterr().out
    afm_scale.load(OLD / "afm")
    assert words in capfd.readouterr().err
    about, own = RUNS["flow_matching"], shutil.copytree(OLD / "flow_matching", tmp_path / "own")
    recipe = [about["recipe"], *about["overrides"], "parallel.device=cpu", "loop.steps=3", f"run.folder={own}"]
    assert main(["train", *recipe]) == EXIT_DONE
    assert f"resumed at step 3 from {step_folder(own, 3)}; {words}" in capfd.readouterr().err
    (event,) = [event for event in RunFolder(own).read_events() if event["kind"] == "start"]
    assert words in event["where"]
