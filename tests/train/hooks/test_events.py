from __future__ import annotations

import json
import resource
from datetime import datetime
from pathlib import Path

import pytest

from afm_scale.core.errors import UserError
from afm_scale.core.run_folder import RunFolder
from afm_scale.train.hooks.events import EventLog


def test_every_event_is_one_line_with_its_time_and_later_runs_append(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    EventLog(path, enabled=True).write("start", step=0)
    EventLog(path, enabled=True).write("save", step=5, seconds_waited=0.1)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [datetime.fromisoformat(event.pop("time")).tzinfo is not None for event in events] == [True, True]
    assert events == [{"kind": "start", "step": 0}, {"kind": "save", "step": 5, "seconds_waited": 0.1}]


@pytest.mark.parametrize("torn", ['{"time": "2026', "{"])
def test_a_line_that_a_kill_tore_is_forgotten_and_the_next_ones_can_be_read(tmp_path: Path, torn: str) -> None:
    folder = RunFolder(tmp_path)
    EventLog(folder.events, enabled=True).write("start", name="\u00e9")
    with folder.events.open("a") as file:
        file.write(torn)
    EventLog(folder.events, enabled=True).write("start", step=7)
    assert [(event["kind"], event.get("step")) for event in folder.read_events()] == [("start", None), ("start", 7)]


def test_an_error_that_ends_a_run_is_its_last_word_and_an_end_in_order_leaves_none(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", enabled=True)
    log.note_failure(None, step=3)
    log.note_failure(UserError("the disk is full; make room"), step=4)
    log.note_failure(KeyError(), step=5)
    (tmp_path / "gone").mkdir()
    EventLog(tmp_path / "gone", enabled=True).note_failure(UserError("nothing can be written"), step=6)
    events = [(event["kind"], event["step"], event["why"]) for event in RunFolder(tmp_path).read_events()]
    assert events == [("failed", 4, "the disk is full; make room"), ("failed", 5, "KeyError")]


def test_the_other_ranks_write_nothing(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl", enabled=False).write("start")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # as a quota would end it
    try:
        with pytest.raises(UserError, match="could not write .*events.jsonl: File too large; free some space"):
            EventLog(tmp_path / "events.jsonl", enabled=True).write("start")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_device_in_the_place_of_the_log_is_not_written_to() -> None:
    with pytest.raises(UserError, match="could not write /dev/full: it is a device, wanted a regular file"):
        EventLog(Path("/dev/full"), enabled=True).write("start")
