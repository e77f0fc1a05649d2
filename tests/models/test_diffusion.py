"""A network that predicts noise, as a velocity field."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import ConfigError
from afm_scale.flow.path import interpolate
from afm_scale.models.diffusion import DiffusionConfig, DiffusionGenerator, steps_of_times, times_of_steps
from afm_scale.models.generator import DiTGenerator
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, awake, inputs


def generator() -> DiffusionGenerator:
    return awake(DiffusionGenerator(DiffusionConfig(**SIZE, times="source"), SHAPE, NUM_CLASSES))


def schedule() -> tuple[Tensor, Tensor]:
    """(a_k, b_k) by the definition, one step after the other."""
    square, squares = 1.0, []
    for k in range(1000):
        square *= 1 - (1e-4 + k * (0.02 - 1e-4) / 999)
        squares.append(square)
    data = torch.tensor(squares, dtype=torch.float64)
    return data.sqrt(), (1 - data).sqrt()


def test_the_times_of_the_steps_have_the_shares_of_noise_and_data_that_the_steps_have() -> None:
    data, noise = schedule()
    times = times_of_steps()
    torch.testing.assert_close(times / (1 - times), noise / data, rtol=1e-9, atol=0)
    assert (times.diff() > 0).all() and times[0].item() == pytest.approx(0.0099, abs=1e-4)
    assert times[-1].item() == pytest.approx(0.9937, abs=1e-4)


def test_times_become_the_steps_they_are_of_and_stay_within_them() -> None:
    times = times_of_steps()
    torch.testing.assert_close(steps_of_times(times, times), torch.arange(1000.0).double(), rtol=0, atol=1e-9)
    between = (times[10] + times[11]) / 2
    found = steps_of_times(torch.stack((between, torch.tensor(0.0), torch.tensor(1.0))), times)
    assert found.tolist() == pytest.approx([10.5, 0, 999])


@pytest.mark.parametrize("step", [0, 1, 137, 500, 998, 999])
def test_at_a_step_the_velocity_is_that_of_the_noise_predicted_on_the_path_of_the_diffusion(step: int) -> None:
    network, (x, _, _, y) = generator(), inputs()
    data, noise = (share[step] for share in schedule())
    t = times_of_steps()[step].expand(len(x))
    u = data * x + noise * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    predicted = DiTGenerator.forward(network, u, torch.full((len(x),), step / 1000), t, y)
    clean = (u - noise * predicted) / data
    x_t = interpolate(clean, predicted, t)
    largest = (predicted - clean).abs().max().item()  # of the step only 24 bits are told
    torch.testing.assert_close(network(x_t, t, t, y), predicted - clean, rtol=0, atol=1e-5 * largest)


def test_it_is_told_no_intervals_for_its_source_is_a_step() -> None:
    with pytest.raises(ConfigError, match="has no interval to be told"):
        DiffusionConfig(**SIZE, times="gated")


def test_after_the_last_step_the_field_stays_and_is_finite() -> None:
    network, (x, _, _, y) = generator(), inputs()
    last, one = times_of_steps()[-1].expand(len(x)), torch.ones(len(x))
    torch.testing.assert_close(network(x, one, one, y), network(x, last, last, y))


def test_one_that_is_told_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be told how much"):
        DiffusionConfig(**SIZE, times="none")
