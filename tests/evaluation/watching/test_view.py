from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from afm_scale.evaluation.watching.view import MOST_POINTS, Watched
from tests.evaluation.watching.runs import START, lines, written


def row(step: int, **more: float | None) -> dict[str, Any]:
    return {"step": step, "images_seen": 8 * step, "generator/total": 1 / step, "images_per_second": 80.0} | more


def view(watched: Watched) -> dict[str, Any]:
    """As it comes to a browser: JSON without NaN."""
    return json.loads(json.dumps(watched.view(), allow_nan=False))


def line(found: dict[str, Any], title: str) -> dict[str, Any]:
    return next(panel for panel in found["panels"] if panel["title"] == title)["lines"][0]


def test_a_run_is_seen_as_its_logs_say(tmp_path: Path) -> None:
    events = [
        START, {"kind": "phase", "step": 0, "phase": "first", "index": 0, "why": "the run begins"},
        {"kind": "evaluation", "step": 2, "figures": {"fid": 9.0}},
        {"kind": "phase", "step": 2, "phase": "second", "index": 1, "why": "2 updates"},
        {"kind": "evaluation", "step": 4, "figures": {"fid": 5.0}},
        {"kind": "act", "step": 4, "act": "reload_discriminator", "to": 2, "why": "stall"},
    ]
    folder = written(tmp_path / "run", events, [row(step) for step in (1, 2, 4)], seconds_since_beat=0)
    (folder.samples / "step_00000002.png").write_bytes(b"")
    (folder.samples / "step_00000004.png").write_bytes(b"")
    found = view(Watched(folder.path, lambda: {"loop": {"steps": 100}}))
    assert (found["name"], found["step"], found["steps"], found["images_seen"]) == ("run", 4, 100, 32.0)
    assert found["standing"]["state"] == "goes on" and found["samples"] == ["step_00000004.png"]
    assert line(found, "loss") == {
        "label": "generator", "hue": "blue", "dashed": False, "steps": [1, 2, 4], "values": [1.0, 0.5, 0.25],
        "newest": 0.25,
    }
    assert line(found, "fid")["values"] == [9.0, 5.0] and line(found, "images per second")["values"] == [80.0] * 3
    assert [(phase["name"], phase["quality"]["best"]) for phase in found["phases"]] == [("first", 9.0), ("second", 5.0)]
    assert found["acts"][0]["what"] == "act: reload_discriminator; to: 2; why: stall"
    assert (found["ranks"]["number"], found["ranks"]["plan"]) == (2, "ddp")


def test_what_is_added_is_seen_once_and_a_line_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", rows=[row(1)])
    watched = Watched(folder.path, dict)
    assert line(view(watched), "loss")["steps"] == [1]
    added = lines([row(2), row(4)])
    for begin, end, steps in ((0, -20, [1, 2]), (-20, None, [1, 2, 4]), (len(added), None, [1, 2, 4])):
        with folder.metrics.open("a") as file:
            file.write(added[begin:end])
        assert line(view(watched), "loss")["steps"] == steps


def test_a_run_that_was_killed_and_went_on_forgets_what_it_took_again(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", rows=[row(step) for step in (1, 2, 3)])
    watched = Watched(folder.path, dict)
    assert line(view(watched), "loss")["steps"] == [1, 2, 3]
    beside = tmp_path / "new"
    beside.write_text(lines([row(1), row(2, **{"generator/total": 7.0})]))
    os.replace(beside, folder.metrics)  # as `forget_later_lines` does
    with folder.events.open("a") as file:
        file.write(lines([dict(START, step=1)]))
    found = view(watched)
    assert line(found, "loss")["values"] == [1.0, 7.0] and found["starts"] == 2


def test_what_a_restart_has_changed_is_seen_and_the_newest_sheet_is_the_one_written_last(tmp_path: Path) -> None:
    folder, settings = written(tmp_path / "run", rows=[row(1)]), {"loop": {"steps": 1}}
    watched = Watched(folder.path, lambda: dict(settings))
    for name, when in (("final.png", 100), ("step_00000002.png", 200), ("step_00000001.png", 50)):
        (folder.samples / name).write_bytes(b"")
        os.utime(folder.samples / name, (when, when))
    assert view(watched)["steps"] == 1
    settings["loop"] = {"steps": 2}
    with folder.events.open("a") as file:
        file.write(lines([dict(START, step=1)]))
    found = view(watched)
    assert found["steps"] == 2 and found["samples"] == ["step_00000002.png"]


def test_a_log_that_is_mended_is_seen_again_and_others_lose_nothing_meanwhile(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", rows=[row(1)])
    good = folder.metrics.read_text()
    watched = Watched(folder.path, dict)
    folder.metrics.write_text(good + "{}\n")
    errors = {view(watched)["error"] for _ in range(3)}
    assert len(errors) == 1 and "metrics.jsonl, line 2 has no 'step'" in errors.pop()
    folder.metrics.write_text(good)
    found = view(watched)
    assert found["starts"] == 1 and line(found, "loss")["steps"] == [1]


def test_a_long_curve_is_thinned_and_keeps_its_spikes_and_gaps(tmp_path: Path) -> None:
    rows = [row(step, **{"generator/total": 1.0}) for step in range(1, 20_001)]
    rows[12_345]["generator/total"] = 500.0
    rows[17_000]["generator/total"] = None
    found = line(view(Watched(written(tmp_path / "run", rows=rows).path, dict)), "loss")
    assert len(found["steps"]) == len(found["values"]) == MOST_POINTS and found["values"].count(None) == 1
    assert max(value for value in found["largest"] if value is not None) == 500.0
    assert {value for value in found["least"] if value is not None} == {1.0} and found["newest"] == 1.0
    assert found["steps"] == sorted(found["steps"])


def test_times_of_ranks_are_curves_and_a_table_with_the_slow_ones_and_the_last_words(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", rows=[row(1)])
    looks = [{"step": 50, "seconds": 0.5, "own": [0.1, 0.1], "data": [0.0, 0.0], "slow": []},
             {"step": 100, "seconds": 0.5, "own": [0.1, 0.4], "data": [0.0, 0.25], "slow": [1]}]
    folder.ranks.write_text(lines(looks))
    folder.rank_log(3).write_text("2026-11-27 04:00:00 rank 3, at step 1\n")
    found = view(Watched(folder.path, dict))
    assert line(found, "seconds of a rank's own in a step") | {"label": "rank 0", "values": [0.1, 0.1]} == line(
        found, "seconds of a rank's own in a step"
    )
    assert found["ranks"]["rows"] == [
        {"rank": 0, "own": 0.1, "data": 0.0, "slow": False, "log": ""},
        {"rank": 1, "own": 0.4, "data": 0.25, "slow": True, "log": ""},
        {"rank": 3, "own": None, "data": None, "slow": False, "log": "2026-11-27 04:00:00 rank 3, at step 1"},
    ]


@pytest.mark.parametrize("damage", ["metrics", "events", "ranks"])
def test_a_damaged_log_is_told_in_the_place_of_the_run(damage: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "run", rows=[row(1)])
    getattr(folder, damage).write_text("{}\n")
    found = view(Watched(folder.path, dict))
    assert found["name"] == "run" and f"{damage}.jsonl, line 1 has no" in found["error"]


def test_a_run_without_a_number_yet_is_seen_too(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", [])
    folder.metrics.unlink()
    folder.events.unlink()
    found = view(Watched(folder.path, dict))
    assert (found["panels"], found["step"], found["standing"]["state"]) == ([], 0, "not begun")
