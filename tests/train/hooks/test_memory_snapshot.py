"""Snapshots of a GPU's memory, as far as they can be had without one: when they are written, and where refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afm_scale.core.run_folder import RunFolder
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import QuietHook, StepReport
from afm_scale.train.hooks.memory_snapshot import MemorySnapshotConfig, MemorySnapshotHook, Recorder
from afm_scale.train.hooks.request import Request
from afm_scale.train.state import TrainState
from tests.program import SMALL_AFM, end, train
from tests.train.hooks.small import run, small_plan, small_state


class Notes(Recorder):
    """In the place of the one that needs a GPU."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, entries: int) -> None:
        self.calls.append(f"begin {entries}")

    def write(self, path: Path) -> None:
        path.write_bytes(b"snapshot")
        self.calls.append("write")

    def end(self) -> None:
        self.calls.append("end")


class RunsOut(QuietHook):
    def after_step(self, state: TrainState, report: StepReport) -> None:
        if report.step == 2:
            raise torch.OutOfMemoryError("no room for 2.00 GiB\nand more")


def hook(folder: Path, notes: Notes) -> MemorySnapshotHook:
    of = RunFolder(folder)
    return MemorySnapshotHook(
        MemorySnapshotConfig(entries=7), recorder=notes, folder=of, rank=0, failures=Failures(),
        events=EventLog(of.events, enabled=True), request=Request(of.memory_request, every_seconds=0.0),
    )


def test_where_memory_runs_out_a_snapshot_is_written_with_the_reason(tmp_path: Path) -> None:
    notes = Notes()
    with pytest.raises(torch.OutOfMemoryError):
        run(small_state(small_plan()), small_plan(), [hook(tmp_path, notes), RunsOut()], steps=4)
    assert notes.calls == ["begin 7", "write", "end"]
    assert (tmp_path / "profiles" / "memory_step_00000002_rank_00000.pickle").read_bytes() == b"snapshot"
    (event,) = RunFolder(tmp_path).read_events()
    assert (event["kind"], event["step"], event["why"]) == ("memory_snapshot", 2, "no room for 2.00 GiB")


def test_a_file_asks_for_one_and_without_it_none_is_written(tmp_path: Path) -> None:
    asked, quiet = Notes(), Notes()
    RunFolder(tmp_path / "a").memory_request.parent.mkdir()
    RunFolder(tmp_path / "a").memory_request.touch()
    run(small_state(small_plan()), small_plan(), [hook(tmp_path / "a", asked), hook(tmp_path / "b", quiet)], steps=3)
    assert asked.calls == ["begin 7", "write", "end"] and quiet.calls == ["begin 7", "end"]
    assert not RunFolder(tmp_path / "a").memory_request.exists()


@pytest.mark.processes
def test_on_a_cpu_it_is_refused_with_what_to_set(tmp_path: Path) -> None:
    code, _, stderr = end(train([*SMALL_AFM, "parallel.device=cpu", "hooks.memory_snapshot={}"], tmp_path / "run"))
    assert code == 2 and "hooks.memory_snapshot records the memory of a GPU" in stderr and "Traceback" not in stderr
