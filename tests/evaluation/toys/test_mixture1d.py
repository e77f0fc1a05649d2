from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from afm_scale.core.errors import DivergenceError
from afm_scale.data.toys.mixture1d import GaussianMixture
from afm_scale.evaluation.toys.mixture1d import draw_flow, line_noise, measure_map, quantile_noise, spread_of_map

MIXTURE = GaussianMixture()


def test_the_exact_map_has_no_error_and_the_optimal_cost() -> None:
    quality = measure_map(MIXTURE.transport_map, MIXTURE)
    assert quality.w1 == quality.rms_to_transport_map == 0
    assert quality.transport_cost == quality.optimal_cost == pytest.approx(0.1506, abs=5e-4)
    assert quality.split == (7, 3, 3, 7) and quality.monotone


def test_the_identity_costs_nothing_and_misses_the_data() -> None:
    quality = measure_map(lambda z: z, MIXTURE)
    assert quality.transport_cost == 0 and quality.w1 > 0.2
    assert quality.rms_to_transport_map**2 == pytest.approx(quality.optimal_cost)


def test_the_mirrored_map_has_the_distribution_but_is_not_optimal() -> None:
    quality = measure_map(lambda z: -MIXTURE.transport_map(z).float(), MIXTURE)
    assert quality.w1 < 1e-6 and quality.split == (7, 3, 3, 7) and not quality.monotone
    assert quality.rms_to_transport_map > 2 and quality.transport_cost > 4


def test_a_shifted_map_is_off_by_the_shift() -> None:
    quality = measure_map(lambda z: MIXTURE.transport_map(z) + 0.1, MIXTURE)
    assert quality.w1 == pytest.approx(0.1) and quality.rms_to_transport_map == pytest.approx(0.1)


def test_a_mode_that_is_missed_is_seen_in_the_split() -> None:
    quality = measure_map(lambda z: MIXTURE.transport_map(z).clamp(max=0.6), MIXTURE)
    assert quality.split == (7, 3, 10, 0) and quality.w1 == pytest.approx(0.25 * 0.9, abs=0.01)


def test_samples_that_are_not_finite_are_reported_as_divergence() -> None:
    with pytest.raises(DivergenceError, match="not finite"):
        measure_map(lambda z: z / (z > 0), MIXTURE)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_picture_shows_the_modes_where_the_flow_ends(tmp_path: Path, num_steps: int) -> None:
    times = torch.linspace(1, 0, num_steps + 1)

    def flow(z: torch.Tensor) -> torch.Tensor:
        x = MIXTURE.transport_map(z)
        return torch.stack([(1 - t) * x + t * z for t in times], dim=1)

    file = tmp_path / "flow.png"
    draw_flow(file, times=times, lines=flow(line_noise()), samples=flow(quantile_noise(2000)), mixture=MIXTURE)
    image = torch.from_numpy(imread(file))[..., :3]  # [height, width, 3] in [0, 1]
    assert image.shape == (800, 1440, 3)

    # In a column just before t = 0 (the panel spans 282 to 1236 across, 3 to -3 from 37 to 724 down) the flow is
    # dark at the four modes and nowhere between them.
    column = image[37:724, 1200].mean(-1)
    rows = [round((3 - x) / 6 * 687) for x in (1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5)]
    darkest = [float(column[row - 8:row + 9].min()) for row in rows]
    assert max(darkest[::2]) < 0.6 and min(darkest[1::2]) > 0.9


def test_diversity_and_modes_of_the_data_are_one_and_what_is_alike_has_neither() -> None:
    data = MIXTURE.transport_map(quantile_noise(2000))
    assert spread_of_map(data, MIXTURE) == pytest.approx((1, 1))
    assert spread_of_map(torch.full((2000,), 0.5), MIXTURE) == pytest.approx((0, 0.25))
    inner, modes = spread_of_map(data.clamp(-0.5, 0.5), MIXTURE)  # two modes of four
    assert 0.3 < inner < 0.5 and modes == pytest.approx(0.5)
    pairs = (data[:, None] - data).abs().sum() / (2000 * 1999)  # by the definition
    half, _ = spread_of_map(data / 2, MIXTURE)
    assert half == pytest.approx(0.5) and pairs > 1
