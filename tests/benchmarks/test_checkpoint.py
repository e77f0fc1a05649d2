"""`afm_scale benchmark checkpoint`, at sizes that take no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_scale.__main__ import main


def test_saves_and_loads_are_timed_beside_those_of_torch_alone_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", "checkpoint", "--mib", "1", "--repeats", "2", "--folder", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 7 and all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)
    assert {row["of"] for row in rows} - {""} <= {row["name"] for row in rows}
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 0
    assert capsys.readouterr().out.count(" x ") == 4


def test_sizes_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "checkpoint", "--mib", "0"]) == 2
    assert "--mib" in capsys.readouterr().err
