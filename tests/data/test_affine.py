"""Turning, shifting and enlarging: beside scipy, in cases whose result is known, and as a function of the position."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from afm_scale.core.errors import ConfigError
from afm_scale.core.random import Positions
from afm_scale.core.typed import build
from afm_scale.data import affine as affine_module
from afm_scale.data.affine import Affine, AffineConfig, affines_at, moved
from afm_scale.data.images import DaliConfig, WebDatasetConfig, mirrored_at
from afm_scale.data.images_to_latents import ImagesToLatentsConfig
from afm_scale.data.latents import LatentsConfig
from afm_scale.run.config import RunConfig
from afm_scale.run.load import RECIPES, load

PUBLISHED = AffineConfig(probability=0.8, degrees=10, translation=0.3, scale_low=1.0, scale_high=1.3)
NOTHING = Affine(angle=0.0, right=0.0, down=0.0, scale=1.0)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Neighbours have nothing in common, so that a small error of place is a large one of value."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_scipy(image: Image.Image, affine: Affine) -> np.ndarray:
    """[H, W, 3] float64, from homogeneous matrices in (row, column), inverted by numpy."""
    pixels = np.asarray(image).astype(np.float64)
    height, width = pixels.shape[:2]

    def shift(down: float, right: float) -> np.ndarray:
        return np.array([[1, 0, down], [0, 1, right], [0, 0, 1]], dtype=np.float64)

    cosine, sine = math.cos(affine.angle), math.sin(affine.angle)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])  # rows count downwards: anticlockwise
    enlarge = np.diag([affine.scale, affine.scale, 1])
    centre = ((height - 1) / 2, (width - 1) / 2)
    forward = (
        shift(*centre) @ shift(affine.down * height, affine.right * width) @ turn @ enlarge
        @ np.linalg.inv(shift(*centre))
    )
    back = np.linalg.inv(forward)
    channels = [
        scipy.ndimage.affine_transform(pixels[..., channel], back[:2, :2], back[:2, 2], order=1, mode="mirror")
        for channel in range(3)
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("size", [(64, 64), (90, 67), (61, 200)])
def test_a_moved_image_is_scipys_rounded_to_grey_levels(size: tuple[int, int]) -> None:
    image = noise(*size)
    draws = [one for one in affines_at(PUBLISHED, Positions(0, 1, 30), seed=1) if one is not None]
    corners = [Affine(sign * math.radians(10), right, down, 1.0) for sign in (-1, 1) for right in (-0.3, 0.3)
               for down in (-0.3, 0.3)]
    far = [Affine(math.radians(150), 0.9, -1.0, 0.2)]  # reflected several times
    for one in draws[:10] + corners + far:
        found = moved(image, one)
        assert found.size == image.size and found.mode == "RGB"
        assert np.abs(np.asarray(found) - by_scipy(image, one)).max() < 0.5 + 0.02


def test_an_image_of_photographic_size_is_as_exact() -> None:
    image, one = noise(500, 375), Affine(math.radians(-8.7), 0.21, -0.29, 1.07)
    assert np.abs(np.asarray(moved(image, one)) - by_scipy(image, one)).max() < 0.5 + 0.05


def test_a_shift_by_whole_pixels_moves_the_reflection_in_bit_for_bit() -> None:
    image = noise(40, 30)
    padded = np.pad(np.asarray(image), ((12, 12), (12, 12), (0, 0)), mode="reflect")
    for right, down in ((10, 6), (-10, 6), (0, -9), (12, -9)):
        wanted = padded[12 - down:42 - down, 12 - right:52 - right]
        assert np.array_equal(np.asarray(moved(image, Affine(0.0, right / 40, down / 30, 1.0))), wanted)


def test_nothing_changes_nothing_and_a_quarter_turn_is_anticlockwise() -> None:
    for image in (noise(37, 51), noise(1, 7), noise(7, 1), noise(1, 1)):
        assert np.array_equal(np.asarray(moved(image, NOTHING)), np.asarray(image))
    square = noise(33, 33)
    turned = moved(square, NOTHING._replace(angle=math.pi / 2))
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(square)))


def test_twice_the_scale_shows_the_middle_half() -> None:
    image = noise(41, 21)
    found = np.asarray(moved(image, NOTHING._replace(scale=2.0)))
    assert np.array_equal(found[::2, ::2], np.asarray(image)[5:16, 10:31])


def test_the_bands_an_image_is_computed_in_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image, one = noise(50, 40), Affine(0.15, 0.2, -0.1, 1.2)
    whole = np.asarray(moved(image, one))
    for pixels in (1, 130, 1999):
        monkeypatch.setattr(affine_module, "_BAND", pixels)
        assert np.array_equal(np.asarray(moved(image, one)), whole)


def test_draws_fill_their_ranges_evenly() -> None:
    count = 20_000
    drawn = affines_at(PUBLISHED, Positions(0, 1, count), seed=0)
    moves = torch.tensor([one for one in drawn if one is not None], dtype=torch.float64)
    share = len(moves) / count
    assert abs(share - 0.8) < 4 * math.sqrt(0.8 * 0.2 / count)
    ranges = ((-math.radians(10), math.radians(10)), (-0.3, 0.3), (-0.3, 0.3), (1.0, 1.3))
    for values, (low, high) in zip(moves.T, ranges, strict=True):
        assert low <= values.min() and values.max() <= high
        unit, even = ((values - low) / (high - low)).sort().values, torch.arange(len(values)) / len(values)
        assert (unit - even).abs().max() < 1.95 / math.sqrt(len(values))  # Kolmogorov-Smirnov, p = 0.001
    correlations = torch.corrcoef(moves.T) - torch.eye(4)
    assert correlations.abs().max() < 4 / math.sqrt(len(moves))


def test_a_draw_depends_on_the_seed_and_the_position_alone() -> None:
    whole = affines_at(PUBLISHED, Positions(100, 1, 24), seed=5)
    for world_size in (2, 3):
        parts = [affines_at(PUBLISHED, Positions(100 + rank, world_size, 24 // world_size), seed=5)
                 for rank in range(world_size)]
        assert [one for turn in zip(*parts, strict=True) for one in turn] == whole
    assert affines_at(PUBLISHED, Positions(112, 1, 12), seed=5) == whole[12:]
    assert affines_at(PUBLISHED, Positions(100, 1, 24), seed=6) != whole


def test_mirroring_and_moving_are_independent() -> None:
    positions = Positions(0, 1, 20_000)
    happens = torch.tensor([one is not None for one in affines_at(PUBLISHED, positions, seed=3)])
    both = (happens & mirrored_at(positions, seed=3)).double().mean()
    assert abs(both - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 20_000)


def test_probability_zero_moves_nothing_and_one_moves_all() -> None:
    positions = Positions(0, 1, 500)
    assert affines_at(None, positions, seed=0) == [None] * 500
    assert affines_at(AffineConfig(probability=0), positions, seed=0) == [None] * 500
    always, often = (affines_at(AffineConfig(probability=p), positions, seed=0) for p in (1, 0.8))
    assert None not in always and None in often
    assert all(one in (None, other) for one, other in zip(often, always, strict=True))


def test_the_defaults_are_the_published_values() -> None:
    assert AffineConfig() == PUBLISHED


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"probability": 1.1}, "probability: found 1.1, wanted a number from 0 to 1"),
        ({"probability": math.nan}, "probability: found nan, wanted a finite number"),
        ({"degrees": -10.0}, "degrees: found -10, wanted a number from 0 to 180"),
        ({"translation": 30.0}, "translation: found 30, wanted a number from 0 to 1"),
        ({"scale_low": 0.0}, "scale_low: found 0, wanted a number above 0, at most 100"),
        ({"scale_low": 1.4}, "scale_low is 1.4 and scale_high 1.3"),
        ({"scale_high": math.inf}, "scale_high: found inf, wanted a finite number"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(AffineConfig, wrong)


def loaded(tmp_path: Path, data: str) -> RunConfig:
    """A recipe of its own that builds on the classifier's data."""
    inherited = [RECIPES / "afm_1step_b2.yaml", RECIPES.parent / "data" / "imagenet256_classifier.yaml"]
    (tmp_path / "own.yaml").write_text(f"inherit: [{', '.join(map(str, inherited))}]\ndata: {data}\n")
    return load(RunConfig, tmp_path / "own.yaml")


def test_the_classifiers_data_are_the_published_ones(tmp_path: Path) -> None:
    data = loaded(tmp_path, "{folder: packed, vae: some}").data
    assert isinstance(data, ImagesToLatentsConfig) and data.affine == PUBLISHED and data.mirror
    images = data.images()
    assert isinstance(images, WebDatasetConfig) and images.affine == PUBLISHED and images.size == 256
    assert loaded(tmp_path, "{folder: packed, vae: some, affine: null}").data.images().affine is None


def test_dali_refuses_to_move_images_and_says_what_to_set(tmp_path: Path) -> None:
    told = "data: affine is set, but images that DALI.* set kind: webdataset .*decoder: webdataset.*affine: null"
    with pytest.raises(ConfigError, match=told):
        loaded(tmp_path, "{folder: packed, vae: some, decoder: dali}")
    with pytest.raises(ConfigError, match=told):
        loaded(tmp_path, "{kind: dali, folder: packed, global_batch: 8, affine: {}}")
    assert isinstance(loaded(tmp_path, "{kind: dali, folder: packed, global_batch: 8}").data, DaliConfig)
    without = loaded(tmp_path, "{folder: packed, vae: some, decoder: dali, affine: null}").data
    assert isinstance(without.images(), DaliConfig)


def test_latents_have_no_such_setting(tmp_path: Path) -> None:
    assert "affine" not in LatentsConfig.__dataclass_fields__
    with pytest.raises(ConfigError, match="data.affine: unknown key"):
        loaded(tmp_path, "{kind: latents, folder: packed, global_batch: 8, affine: {}}")
