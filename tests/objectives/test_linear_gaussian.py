"""On Gaussian data the mean velocity is known in closed form; every objective that regresses it ends there."""

from __future__ import annotations

import pytest
import torch

from afm_scale.flow.path import Prediction
from afm_scale.objectives.alpha_flow import AlphaFlow, AlphaFlowConfig
from afm_scale.objectives.curriculum import ConstantAlpha
from afm_scale.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from afm_scale.objectives.mean_flow import MeanFlow, MeanFlowConfig
from afm_scale.objectives.objective import GameOfOne
from afm_scale.objectives.twin_flow import TARGET, TwinFlow, TwinFlowConfig
from afm_scale.sampling.sampler import sample
from tests.objectives.linear_gaussian import MEAN, VARIANCE, NearlyExact, fixed_point, mean_velocity, networks
from tests.objectives.small import CPU

COUNT = 40_000
OF_INTERVALS = {"class_dropout": 0.0, "flow_matching_share": 0.25}
# Plain squares: about the root of an error there is no slope to be had at no error.
TWIN = {"class_dropout": 0.0, "guidance_weight": 0.0, "robust": None}


def alpha(value: float) -> tuple[type[GameOfOne], object]:
    return AlphaFlow, AlphaFlowConfig(**OF_INTERVALS, alpha=ConstantAlpha(value=value), clamp=None)


OBJECTIVES = {
    "flow matching": (FlowMatching, FlowMatchingConfig()),
    "mean flow": (MeanFlow, MeanFlowConfig(**OF_INTERVALS)),
    "improved": (MeanFlow, MeanFlowConfig(**OF_INTERVALS, tangent="predicted")),
    "by differences": (MeanFlow, MeanFlowConfig(**OF_INTERVALS, derivative="central")),
    "alpha flow at 0": alpha(0.0),
    "alpha flow at its floor": alpha(0.005),
    "twin flow": (TwinFlow, TwinFlowConfig(**TWIN)),
    "twin flow of order 1": (TwinFlow, TwinFlowConfig(**TWIN, order=1, target=None)),
}


def found(kind: type[GameOfOne], config: object) -> tuple[torch.Tensor, torch.Tensor]:
    network = NearlyExact()
    return fixed_point(kind(config, lambda value: value, CPU), network, networks(network, TARGET), count=COUNT)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_descent_ends_at_the_mean_velocity(name: str) -> None:
    off, rates = found(*OBJECTIVES[name])
    # Of flow matching the velocity alone; of twins the velocity of what they make too.
    assert len(off) == (2 if name == "flow matching" else 6 if "twin" in name else 4)
    assert off.abs().max().item() < 0.05
    assert (rates > 0).all()


def test_flow_matching_over_whole_intervals_ends_elsewhere() -> None:
    """At alpha = 1 it learns the velocity over any interval: else the others' ending there would say little."""
    off, _ = found(*alpha(1.0))
    assert off.abs().max().item() > 0.2


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_mean_velocity_draws_the_data_in_any_number_of_steps(num_steps: int) -> None:
    noise = torch.randn(4000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(len(noise), dtype=torch.int64)
    x = sample(NearlyExact(), noise, labels, num_steps=num_steps, prediction=Prediction.V)
    torch.testing.assert_close(x, MEAN + VARIANCE**0.5 * noise, rtol=1e-6, atol=1e-6)  # the flow, times are float32


def test_the_closed_form_is_the_mean_of_the_velocity_along_the_flow() -> None:
    x, t, r = (torch.tensor(value, dtype=torch.float64).view(1, 1, 1, 1) for value in (0.4, 0.9, 0.2))
    steps, moved = 1000, x
    for index in range(steps):  # the velocity in the middle of each part, of the point at its start
        at = t - (t - r) * (index + 0.5) / steps
        moved = moved - (t - r) / steps * mean_velocity(moved, at, at)
    torch.testing.assert_close(mean_velocity(x, t, r), (x - moved) / (t - r), rtol=1e-3, atol=1e-3)
