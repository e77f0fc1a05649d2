from __future__ import annotations

import pytest
import torch

from afm_scale.flow.path import Prediction, interpolate, interval_weight, move

DRAW = torch.Generator().manual_seed(0)
X, Z = torch.randn(2, 5, 3, 4, 4, generator=DRAW, dtype=torch.float64)
S, T = torch.tensor([1.0, 0.9, 0.5, 0.5, 0.3]), torch.tensor([0.0, 0.1, 0.5, 0.25, 0.1])


def test_time_0_is_data_and_time_1_is_noise() -> None:
    assert torch.equal(interpolate(X, Z, torch.zeros(5)), X)
    assert torch.equal(interpolate(X, Z, torch.ones(5)), Z)


def test_float32_times_are_widened_before_they_are_used() -> None:
    expected = torch.stack([(1 - float(t)) * x + float(t) * z for x, z, t in zip(X, Z, T, strict=True)])
    assert interpolate(X, Z, T).dtype == torch.float64
    assert torch.equal(interpolate(X, Z, T), expected)


def test_moving_by_the_true_velocity_follows_the_path() -> None:
    moved = move(Prediction.V, Z - X, interpolate(X, Z, S), S, T)
    torch.testing.assert_close(moved, interpolate(X, Z, T), rtol=0, atol=1e-14)


def test_an_x_prediction_is_the_sample_itself() -> None:
    assert torch.equal(move(Prediction.X, X, Z, S, T), X)


def test_a_step_of_no_length_moves_nothing() -> None:
    assert torch.equal(move(Prediction.V, Z, X, S, S), X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_interval_weight_is_its_length_but_never_below_a_thousandth(dtype: torch.dtype) -> None:
    weight = interval_weight(torch.tensor([1.0, 0.5, 0.5], dtype=dtype), torch.tensor([0.25, 0.5, 0.4995], dtype=dtype))
    torch.testing.assert_close(weight, torch.tensor([0.75, 0.001, 0.001], dtype=dtype))
