from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from afm_scale.core.errors import UserError
from afm_scale.train.hooks.tensorboard import TensorBoard


def write(folder: Path, resumed_from: int, steps: list[int], value: float) -> None:
    writer = TensorBoard(folder)
    writer.start(resumed_from)
    for step in steps:
        writer.write({"step": step, "generator/total": value})
    writer.close()


def shown(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("generator/total")]


def test_scalars_are_shown_at_their_steps(tmp_path: Path) -> None:
    write(tmp_path, 0, [10, 20], 0.5)
    assert shown(tmp_path) == [(10, 0.5), (20, 0.5)]


def test_a_resumed_run_takes_the_place_of_what_it_repeats(tmp_path: Path) -> None:
    write(tmp_path / "first", 0, [10, 20, 30], 0.5)
    (first,) = (tmp_path / "first").iterdir()
    write(tmp_path / "second", 20, [30, 40], 0.25)
    (second,) = (tmp_path / "second").iterdir()
    both = tmp_path / "both"  # the files are named by the second; put in order without waiting for the next one
    both.mkdir()
    first.rename(both / "events.out.tfevents.1")
    second.rename(both / "events.out.tfevents.2")
    assert shown(both) == [(10, 0.5), (20, 0.5), (30, 0.25), (40, 0.25)]


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not write .*tensorboard"):
        TensorBoard(tmp_path / "file" / "tensorboard").start(0)
