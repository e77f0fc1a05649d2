from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afm_scale.core.errors import ConfigError, UserError
from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.typed import build
from afm_scale.sampling.pictures import to_uint8
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.samples import SamplesConfig, SamplesHook
from tests.ranks import run_ranks
from tests.train.hooks.small import SHAPE, run, small_plan, small_state, stop_for


def draw(folder: Path, *, steps: int, **changes: int) -> int:
    plan = small_plan()
    state = small_state(plan)
    failures = Failures()
    config = SamplesConfig(**{"every_steps": 2, "images_per_class": 15, "upscale": 3, **changes})
    hook = SamplesHook(plan, config, folder=folder, seed=7, num_steps=1, failures=failures)
    run(state, plan, [hook, stop_for(failures)], steps=steps)
    return state.step


def test_sheets_appear_every_k_steps_from_the_same_noise(tmp_path: Path) -> None:
    draw(tmp_path / "a", steps=5)
    assert sorted(os.listdir(tmp_path / "a")) == ["step_00000002.png", "step_00000004.png"]
    draw(tmp_path / "b", steps=2)
    first, again = (Image.open(tmp_path / name / "step_00000002.png").tobytes() for name in "ab")
    assert first == again
    assert first != Image.open(tmp_path / "a" / "step_00000004.png").tobytes()


def test_every_row_of_a_sheet_is_one_class(tmp_path: Path) -> None:
    draw(tmp_path, steps=2)
    plan, state = small_plan(), small_state(small_plan())
    run(state, plan, [], steps=2)
    sheet = np.asarray(Image.open(tmp_path / "step_00000002.png"))
    left = sheet.shape[1] - (2 + 15 * (3 * 4 + 2))
    for label, column in [(0, 0), (2, 0), (1, 14)]:
        index = label + 3 * column
        noise = KeyedDraws(7, "sample", positions=Positions(index, 1, 1)).normal("noise", SHAPE)
        times = torch.ones(1), torch.zeros(1)
        with torch.no_grad():
            expected = to_uint8(noise - state.average.network(noise, *times, torch.tensor([label])))[0, 0].numpy()
        top, start = 2 + label * 14, left + 2 + column * 14
        found = sheet[top : top + 12 : 3, start : start + 12 : 3, 0].astype(int)
        assert np.abs(found - expected.astype(int)).max() <= 1


def test_at_most_max_classes_are_shown(tmp_path: Path) -> None:
    draw(tmp_path, steps=2, max_classes=2, images_per_class=1)
    with Image.open(tmp_path / "step_00000002.png") as sheet:
        assert sheet.height == 2 + 2 * (3 * 4 + 2)


def test_two_ranks_draw_the_sheet_of_one(tmp_path: Path) -> None:
    draw(tmp_path / "one", steps=2)
    run_ranks(2, _draw, tmp_path / "two")
    one, two = (
        np.asarray(Image.open(tmp_path / name / "step_00000002.png")).astype(int) for name in ("one", "two")
    )
    assert np.abs(one - two).max() <= 1  # sums over two ranks round otherwise, so the weights differ in the last bits


def _draw(folder: Path) -> int:
    return draw(folder, steps=2)


def _draw_where_nobody_may(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        draw(folder, steps=6)
    return str(caught.value)


def test_a_sheet_that_cannot_be_written_stops_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    first, second = run_ranks(2, _draw_where_nobody_may, tmp_path / "file" / "samples")
    assert first == second
    assert "could not write" in first and "step_00000002.png" in first


def test_a_sheet_without_columns_is_refused() -> None:
    with pytest.raises(ConfigError, match="images_per_class: found 0, wanted a whole number"):
        build(SamplesConfig, {"every_steps": 1, "images_per_class": 0})
