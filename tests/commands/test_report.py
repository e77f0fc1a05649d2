"""The command `report`: a real run, a log made by hand, and logs that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR
from afm_scale.core.run_folder import RunFolder
from tests.program import SMALL_AFM, SMALL_FLOW_MATCHING

EVENTS = [
    {"kind": "start", "step": 0}, {"kind": "phase", "step": 0, "phase": "first", "index": 0, "why": "the run begins"},
    {"kind": "evaluation", "step": 10, "figures": {"recall": 0.5, "fid": 8.0}},
    {"kind": "evaluation", "step": 20, "figures": {"recall": 0.4, "fid": 1.0}},  # lost by a kill
    {"kind": "start", "step": 10}, {"kind": "evaluation", "step": 20, "figures": {"recall": 0.6, "fid": 4.0}},
    {"kind": "act", "step": 20, "act": "advance_phase", "why": "20 updates"},
    {"kind": "phase", "step": 20, "phase": "second", "index": 1, "why": "20 updates"},
    {"kind": "rule", "step": 30, "rule": "stall", "evidence": {"gap": 2.0}},
    {"kind": "trial", "step": 30, "candidates": [], "chosen": 10},
    {"kind": "act", "step": 30, "act": "reload_discriminator", "why": "stall", "to": 10},
    {"kind": "evaluation", "step": 30, "figures": {"recall": 0.7, "fid": 3.0}},
]
ROWS = [{"step": step, "images_seen": 8 * step, "generator/total": 1.0, "discriminator/logit_real": 2.0 + step,
         "discriminator/logit_fake": -1.0} for step in (10, 20, 30, 40)]


@pytest.fixture
def by_hand(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def reported(folder: RunFolder, capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["report", str(folder.path), *map(str, words)])
    return code, *capsys.readouterr()


def as_json(folder: RunFolder, capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    code, printed, complaints = reported(folder, capsys, "--json", *words)
    assert code == EXIT_DONE and complaints == ""
    return json.loads(printed)


def test_figures_are_those_of_the_logs_as_the_run_finally_went(
    by_hand: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(by_hand, capsys)
    first, second = found["phases"]
    assert (found["quality"], found["step"]) == ("fid", 40)
    assert (first["phase"], first["updates"], second["first"], second["last"]) == ("first", 20, 20, 40)
    assert first["quality"] == {"begin": 8.0, "best": 4.0, "best_step": 20, "end": 4.0}
    assert second["quality"] == {"begin": 4.0, "best": 3.0, "best_step": 30, "end": 3.0}
    assert first["acts"] == {"advance_phase": 1} and second["acts"] == {"reload_discriminator": 1}
    assert second["rules"] == {"stall": 1}
    assert found["last"] == {
        "recall": 0.7, "fid": 3.0, "logit_gap": 43.0, "generator/total": 1.0, "images_seen": 320.0
    }
    assert found["picture"] == str(by_hand.path / "report.png")
    assert imread(found["picture"]).ndim == 3


def test_the_quality_is_the_one_that_the_pilot_is_told_of(
    by_hand: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand.config.write_text("loop: {steps: 100}\npilot: {quality: recall}\n")
    found = as_json(by_hand, capsys)
    assert found["quality"] == "recall" and found["phases"][0]["quality"]["best"] == 0.6
    assert "step 40 of 100" in reported(by_hand, capsys)[1]


def test_the_table_has_a_row_for_each_phase_and_the_picture_goes_where_it_is_asked(
    by_hand: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "new" / "of it.png"
    code, printed, complaints = reported(by_hand, capsys, "--out", picture)
    assert code == EXIT_DONE and complaints == "" and picture.exists() and f"picture: {picture}" in printed
    assert not (by_hand.path / "report.png").exists()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    assert rows[:2] == [
        ["1 first", "0 to 20", "20", "8", "4 at 20", "4", "advance_phase", ""],
        ["2 second", "20 to 40", "20", "4", "3 at 30", "3", "reload_discriminator", "stall"],
    ]


@pytest.mark.parametrize("lost", ["events", "metrics"])
def test_one_log_is_enough(lost: str, by_hand: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(by_hand, lost).unlink()
    found = as_json(by_hand, capsys)
    assert Path(found["picture"]).exists() and len(found["phases"]) == (1 if lost == "events" else 2)


def test_a_run_that_has_written_no_numbers_yet_is_told_and_not_drawn(
    by_hand: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand.metrics.unlink()
    by_hand.events.write_text(json.dumps(EVENTS[0]) + "\n" + json.dumps(EVENTS[1])[:30])  # and the last line is torn
    code, printed, _ = reported(by_hand, capsys)
    assert code == EXIT_DONE and "nothing to draw yet" in printed and not list(by_hand.path.glob("*.png"))


@pytest.mark.parametrize("file, content, message", [
    ("events.jsonl", '{"kind": "start", "step": 0\n{}\n', "line 1 is not JSON"),
    ("events.jsonl", "[]\n{}\n", "line 1 has no 'kind'"),
    ("events.jsonl", '{"kind": "save", "step": "7"}\n', "line 1: its 'step' is no whole number"),
    ("events.jsonl", '{"kind": "act", "act": "roll_back", "step": 7}\n', "a roll-back to 'None', wanted a step"),
    ("events.jsonl", '{"kind": "evaluation", "step": 7, "figures": {"fid": "low"}}\n', "fid: 'low' is no number"),
    ("metrics.jsonl", '{"step": -1}\n', "line 1: its 'step' is no whole number"),
    ("metrics.jsonl", '{"step": 1e999}\n', "line 1: its 'step' is no whole number"),
    ("metrics.jsonl", '{"step": 1, "generator/total": "x"}\n', "the row of step 1: generator/total: 'x' is no number"),
    ("metrics.jsonl", "\udcff\udcfe\n\n", "line 1 is not JSON"),
    ("config.yaml", "[: {", "config.yaml"),
])
def test_a_damaged_file_is_one_message_and_exit_code_2(
    file: str, content: str, message: str, by_hand: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (by_hand.path / file).write_bytes(content.encode(errors="surrogateescape"))
    code, printed, complaints = reported(by_hand, capsys)
    assert code == EXIT_USER_ERROR and printed == "" and message in complaints and len(complaints.splitlines()) == 1
    assert not list(by_hand.path.glob("*.png"))


def test_a_folder_that_is_no_runs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, complaints = reported(RunFolder(tmp_path / "absent"), capsys)
    assert code == EXIT_USER_ERROR and "absent has no events.jsonl and no metrics.jsonl" in complaints


@pytest.mark.parametrize("recipe, terms", [
    (SMALL_FLOW_MATCHING, {"generator/total"}), (SMALL_AFM, {"generator/total", "discriminator/total", "logit_gap"}),
], ids=["one player", "a game"])
def test_a_run_of_any_objective_has_its_picture(
    recipe: tuple[str, ...], terms: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    words = [f"run.folder={folder.path}", "loop.steps=2", "hooks.metrics.every_steps=1", "parallel.device=cpu"]
    assert main(["train", *recipe, *words, "parallel.plan=ddp"]) == EXIT_DONE
    capsys.readouterr()
    found = as_json(folder, capsys)
    assert terms <= found["last"].keys() and ("logit_gap" in found["last"]) == ("logit_gap" in terms)
    assert found["step"] == 2 and imread(folder.path / "report.png").ndim == 3
