from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from afm_scale.core.errors import DivergenceError
from afm_scale.core.types import Batch
from afm_scale.data.toys.mixture2d import ClassMixture
from afm_scale.evaluation.toys.mixture2d import class_distances, class_quality, data_samples, draw_classes

MIXTURE = ClassMixture()
DATA = data_samples(MIXTURE, 40_000)
CENTRES = MIXTURE.places("cpu").float().view(-1, 2, 1, 1)


def test_the_data_have_the_distances_of_a_normal_distribution() -> None:
    quality = class_quality(DATA.x, DATA.y, MIXTURE)
    # 4 standard errors: the distance to the centre has deviation sqrt(2 - pi/2), the spread about 1/(2 sqrt(N)).
    assert quality.distance == pytest.approx(math.sqrt(math.pi / 2), abs=4 * math.sqrt((2 - math.pi / 2) / 40_000))
    assert quality.spread == pytest.approx(1, abs=4 * 0.5 / 200)
    assert quality.shift < 4 * math.sqrt(2 * 9 / 40_000)
    assert quality.class_accuracy > 0.9998


def test_samples_at_half_the_distance_are_measured_so() -> None:
    halfway = CENTRES[DATA.y] + (DATA.x - CENTRES[DATA.y]) / 2
    found, data = class_quality(halfway, DATA.y, MIXTURE), class_quality(DATA.x, DATA.y, MIXTURE)
    assert found.distance == pytest.approx(data.distance / 2, rel=1e-5)
    assert found.spread == pytest.approx(data.spread / 2, rel=1e-5)


def test_a_class_that_is_moved_as_a_whole_is_shifted_and_no_narrower() -> None:
    moved = DATA.x + 3 * MIXTURE.sigma * torch.tensor([1.0, 0.0]).view(2, 1, 1)
    found = class_quality(moved, DATA.y, MIXTURE)
    assert found.shift == pytest.approx(3, abs=0.05) and found.spread == pytest.approx(1, abs=0.01)
    assert found.distance > 3


def test_samples_of_the_wrong_class_are_not_accurate() -> None:
    assert class_quality(DATA.x, (DATA.y + 1) % 9, MIXTURE).class_accuracy < 0.001


def test_samples_that_are_not_finite_are_reported_as_divergence() -> None:
    with pytest.raises(DivergenceError, match="not finite"):
        class_quality(DATA.x / 0, DATA.y, MIXTURE)


def test_the_picture_has_a_panel_for_each_name_and_dots_where_the_samples_are(tmp_path: Path) -> None:
    file = tmp_path / "classes.png"
    beside = CENTRES[:1] + MIXTURE.sigma  # the cross would hide what lies on the centre
    corner = Batch(beside.expand(900, -1, -1, -1), torch.arange(900) % 9)
    draw_classes(file, {"data": data_samples(MIXTURE, 900), "all in one corner": corner}, MIXTURE)
    image = torch.from_numpy(imread(file))[..., :3]  # [height, width, 3] in [0, 1]
    height, width, _ = image.shape
    assert (height, width) == (480, 816)
    coloured = (image.amax(-1) - image.amin(-1)) > 0.2
    left, right = coloured[:, : width // 2], coloured[:, width // 2 :]
    assert left.sum() > 20 * right.sum() > 0


def test_distance_and_diversity_are_of_the_classes() -> None:
    few = slice(0, 9000)
    distance, diversity = class_distances(DATA.x[few], DATA.y[few], MIXTURE)
    assert distance < 0.01 and diversity == pytest.approx(1, abs=0.02)
    halfway = CENTRES[DATA.y[few]] + (DATA.x[few] - CENTRES[DATA.y[few]]) / 2
    distance, diversity = class_distances(halfway, DATA.y[few], MIXTURE)
    assert distance == pytest.approx(2 * 0.5**2, abs=0.03) and diversity == pytest.approx(0.5, abs=0.01)
    assert class_distances(CENTRES[DATA.y[few]], DATA.y[few], MIXTURE) == pytest.approx((2, 0), abs=1e-9)
