from __future__ import annotations

import json
import math
import os
import resource
from pathlib import Path

import pytest
import torch

from afm_scale.core.errors import ConfigError, UserError
from afm_scale.core.typed import build
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.metrics import JsonLines, MetricsConfig, MetricsHook, Row, forget_later_lines
from afm_scale.train.hooks.stop import StopHook
from tests.ranks import run_ranks
from tests.train.hooks.small import report, run, small_plan, small_state, stop_for


class Remembered:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.started: list[int] = []
        self.closed = 0

    def start(self, step: int) -> None:
        self.started.append(step)

    def write(self, row: Row) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.closed += 1


def rows_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(writer: object, every_steps: int) -> tuple[MetricsHook, StopHook]:
    plan = small_plan()
    failures = Failures()
    config = MetricsConfig(every_steps=every_steps)
    return MetricsHook(plan, config, [writer] if plan.rank == 0 else [], failures), stop_for(failures)


def test_a_row_is_the_mean_over_the_steps_since_the_last_one() -> None:
    writer, state = Remembered(), small_state(small_plan())
    hook, _ = metrics(writer, every_steps=3)
    hook.on_start(state)
    for step in range(1, 7):
        state.step, state.images_seen = step, 8 * step
        hook.after_step(state, report(step, learning_rates={"generator": step / 100}))
    first, second = writer.rows
    assert (first["step"], first["images_seen"], first["generator/total"]) == (3, 24, 2.0)
    assert (second["step"], second["images_seen"], second["generator/total"]) == (6, 48, 5.0)
    assert (second["generator/grad_norm"], second["generator/learning_rate"]) == (2.0, 0.06)


def test_rates_fit_the_clock_and_each_other() -> None:
    writer, state = Remembered(), small_state(small_plan())
    hook, _ = metrics(writer, every_steps=2)
    hook.on_start(state)
    for step in (1, 2):
        hook.after_step(state, report(step))
    (row,) = writer.rows
    assert row["seconds"] == pytest.approx(2 * row["seconds_per_step"])
    assert row["images_per_second"] * row["seconds_per_step"] == pytest.approx(8)
    assert row["data_wait_share"] * row["seconds"] == pytest.approx(0.2)


def test_a_term_that_only_some_steps_have_is_averaged_over_those() -> None:
    writer, state = Remembered(), small_state(small_plan())
    hook, _ = metrics(writer, every_steps=2)
    hook.on_start(state)
    hook.after_step(state, report(1, terms={"generator/a": torch.tensor(1.0), "generator/b": torch.tensor(7.0)}))
    hook.after_step(state, report(2, terms={"generator/a": torch.tensor(2.0)}))
    assert (writer.rows[0]["generator/a"], writer.rows[0]["generator/b"]) == (1.5, 7.0)


def test_training_writes_every_k_steps_and_what_is_left_at_the_end(tmp_path: Path) -> None:
    plan, state = small_plan(), small_state(small_plan())
    hook, stop = metrics(JsonLines(tmp_path / "metrics.jsonl"), every_steps=2)
    run(state, plan, [hook, stop], steps=5)
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [row["images_seen"] for row in rows] == [24, 48, 60]
    assert all(row["generator/total"] > 0 for row in rows)


def test_a_run_that_fails_closes_its_writers_and_writes_no_further_row() -> None:
    writer, state = Remembered(), small_state(small_plan())
    hook, _ = metrics(writer, every_steps=5)
    hook.on_start(state)
    hook.after_step(state, report(1))
    hook.on_end(state, RuntimeError())
    assert (writer.rows, writer.closed) == ([], 1)


@pytest.mark.parametrize("line", [b"somebody's list", b"[" * 9000, b'{"loss": 1}', b"[1]", b'{"step": "1"}'])
def test_a_line_that_is_no_row_is_said_and_left_out_and_nothing_of_the_file_is_lost(
    line: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 1}\n')
    before = path.read_bytes()
    forget_later_lines(path, 9)
    (told,) = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl, line 2 is no row with a step" in told and told.endswith("metrics.jsonl.found")
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n'
    assert (tmp_path / "metrics.jsonl.found").read_bytes() == before
    path.write_bytes(before)
    forget_later_lines(path, 0)
    assert (tmp_path / "metrics.jsonl.found1").exists() and path.read_bytes() == b'{"step": 0}\n'


@pytest.mark.parametrize("harm", ["deleted", "replaced", "its folder deleted"])
def test_a_file_that_goes_in_the_middle_is_said_once_and_written_on(
    harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    lines = JsonLines(path)
    lines.start(0)
    lines.write({"step": 1})
    path.unlink()
    if harm == "replaced":
        path.write_text('{"step": 1}\n')
    if harm == "its folder deleted":
        path.parent.rmdir()
    for step in (2, 3):
        lines.write({"step": step})
    lines.close()
    assert [row["step"] for row in rows_of(path)] == [*([1] if harm == "replaced" else []), 2, 3]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("was deleted or replaced while the run was writing to it: its earlier rows are gone")


def test_a_resumed_run_forgets_later_rows_and_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "a": step}) + "\n" for step in (10, 20, 30)) + '{"step": 40, "a"')
    lines = JsonLines(path)
    lines.start(20)
    lines.write({"step": 30, "a": 0.5})
    lines.close()
    assert [(row["step"], row["a"]) for row in rows_of(path)] == [(10, 10), (20, 20), (30, 0.5)]


def test_every_row_is_on_the_disk_at_once_and_is_strict_json(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.start(0)
    lines.write({"step": 1, "a": math.nan, "b": math.inf})
    assert rows_of(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None}]
    lines.close()


def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="every_steps: found 0, wanted a whole number from 1"):
        build(MetricsConfig, {"every_steps": 0})


def _means_over_ranks() -> list[tuple[float, float]]:
    writer, rank = Remembered(), int(os.environ["RANK"])
    hook, _ = metrics(writer, every_steps=2)
    state = small_state(small_plan())
    hook.on_start(state)
    for step in (1, 2):
        terms = {"generator/a": torch.tensor(10.0 * rank + step), "generator/b": torch.tensor(float(rank))}
        hook.after_step(state, report(step, terms=terms))
    return [(row["generator/a"], row["generator/b"]) for row in writer.rows]


def test_values_are_averaged_over_the_ranks_and_one_rank_writes() -> None:
    assert run_ranks(3, _means_over_ranks) == [[(11.5, 1.0)], [], []]


def _disk_full(path: Path) -> tuple[int, str]:
    plan = small_plan()
    state = small_state(plan)
    hook, stop = metrics(JsonLines(path), every_steps=1)
    # The kernel refuses bytes beyond the limit, as it refuses those for which a disk has no room.
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
    with pytest.raises(UserError) as caught:
        run(state, plan, [hook, stop], steps=20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return state.step, str(caught.value)


def test_a_write_error_on_rank_0_stops_all_ranks_with_its_message(tmp_path: Path) -> None:
    first, second = run_ranks(2, _disk_full, tmp_path / "metrics.jsonl")
    assert first == second
    assert first[0] < 20
    assert f"could not write {tmp_path / 'metrics.jsonl'}: File too large" in first[1]


def _no_folder(path: Path) -> int:
    plan = small_plan()
    state = small_state(plan)
    hook, stop = metrics(JsonLines(path), every_steps=1)
    with pytest.raises(UserError, match="could not write"):
        run(state, plan, [hook, stop], steps=20)
    return state.step


def test_a_place_that_cannot_be_written_stops_all_ranks_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run_ranks(2, _no_folder, tmp_path / "file" / "metrics.jsonl") == [0, 0]
