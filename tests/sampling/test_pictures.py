from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afm_scale.core.errors import UserError
from afm_scale.sampling.pictures import image_grid, save_png, to_uint8


def test_the_ends_of_the_range_are_black_and_white_and_halves_go_up() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0, -1 + 1 / 255, 2 * 100 / 255 - 1])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 1, 100]


def test_every_grey_level_survives_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_stand_in_rows_and_every_pixel_is_a_square(channels: int) -> None:
    images = torch.arange(5 * channels * 2 * 3, dtype=torch.uint8).view(5, channels, 2, 3)
    sheet = np.asarray(image_grid(images, columns=3, upscale=4))
    assert sheet.shape == (2 + 2 * (2 * 4 + 2), 2 + 3 * (3 * 4 + 2), 3)
    fourth = sheet[12:20, 2:14]  # second row, first column
    shown = images[3, :3].expand(3, -1, -1).permute(1, 2, 0).numpy()
    assert np.array_equal(fourth, shown.repeat(4, axis=0).repeat(4, axis=1))
    assert (sheet[12:20, 2 + 2 * 14 :] == 96).all()  # there is no sixth image


def test_floats_are_shown_like_the_bytes_they_stand_for() -> None:
    images = torch.linspace(-1.2, 1.2, 64).view(1, 1, 8, 8)
    assert image_grid(images, columns=1).tobytes() == image_grid(to_uint8(images), columns=1).tobytes()


def test_row_labels_widen_the_sheet_and_leave_the_images_alone() -> None:
    images = torch.full((4, 1, 16, 16), 200, dtype=torch.uint8)
    plain = np.asarray(image_grid(images, columns=2))
    labelled = np.asarray(image_grid(images, columns=2, row_labels=["seven", "8"]))
    margin = labelled.shape[1] - plain.shape[1]
    assert np.array_equal(labelled[:, margin:], plain)
    assert (labelled[:18, :margin] != 96).any() and (labelled[20:, :margin] != 96).any()


def test_a_saved_picture_reads_back_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    grid = image_grid(torch.randn(4, 3, 8, 8), columns=2)
    save_png(grid, tmp_path / "new" / "grid.png")
    assert Image.open(tmp_path / "new" / "grid.png").tobytes() == grid.tobytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not write .*grid.png"):
        save_png(image_grid(torch.zeros(1, 1, 2, 2), columns=1), tmp_path / "file" / "grid.png")
