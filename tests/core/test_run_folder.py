"""A run's folder: its logs are read as they were written, also when a kill tore the last line."""

from __future__ import annotations

from pathlib import Path

import pytest

from afm_scale.core.errors import DataError
from afm_scale.core.run_folder import RunFolder
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.metrics import JsonLines


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    log = EventLog(run.events, enabled=True)
    log.write("start", step=0, where="new run")
    log.write("save", step=10)
    assert [(event["kind"], event["step"]) for event in run.read_events()] == [("start", 0), ("save", 10)]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = JsonLines(run.metrics)
    rows.start(0)
    rows.write({"step": 1, "generator/total": 0.5})
    rows.write({"step": 2, "generator/total": float("nan")})
    rows.close()
    assert list(run.read_metrics()) == [
        {"step": 1, "generator/total": 0.5}, {"step": 2, "generator/total": None},
    ]


def test_a_last_line_that_was_torn_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2, "gener')
    assert list(run.read_metrics()) == [{"step": 1}]


@pytest.mark.parametrize("text, message", [
    ('{"step": 1\n{"step": 2}\n', "line 1 is not JSON"), ('{"kind": "save"}\n', "line 1 has no 'step'"),
    ("[1]\n", "line 1 has no 'step'"),
])
def test_what_is_no_log_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text(text)
    with pytest.raises(DataError, match=message):
        list(run.read_metrics())


def test_a_folder_without_logs_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="events.jsonl cannot be read: No such file"):
        list(RunFolder(tmp_path).read_events())
