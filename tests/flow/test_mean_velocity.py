"""Targets of the mean velocity against each other, derivatives and closed forms, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.types import NO_CLASS
from afm_scale.flow.derivative import central_difference, derivative
from afm_scale.flow.mean_velocity import (
    Interval,
    MixedVelocity,
    discrete_target,
    limit_target,
    residual,
    velocities,
)
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.mlp import MLPConfig, MLPGenerator
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, awake, inputs
from tests.objectives.linear_gaussian import mean_velocity

DIT = DiTGenerator(GeneratorConfig(**SIZE, times="gated", time_embedding="plain"), SHAPE, NUM_CLASSES)
MLP = MLPGenerator(MLPConfig(width=8, scale=1.0), SHAPE, NUM_CLASSES)


def asked(network: nn.Module) -> tuple[nn.Module, Interval, Tensor]:
    network, (x, t, r, y) = awake(network), inputs()
    velocity = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    return network, Interval(x, t.double(), r.double(), velocity), y


def wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def of_gaussian(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    return mean_velocity(x, wide(t), wide(r))


@pytest.mark.parametrize("network", [DIT, MLP], ids=["dit", "mlp"])
def test_the_discrete_target_leaves_by_alpha_times_what_the_derivative_says(network: nn.Module) -> None:
    """[u - target_a] / a -> u - v + (t - r) du/dt, so that at a small alpha alpha-Flow's gradient is MeanFlow's."""
    network, found, y = asked(network)
    called = lambda x, t, r: network(x, t, r, y)  # noqa: E731
    tangents = found.velocity, torch.ones_like(found.t), torch.zeros_like(found.r)
    u, along = derivative(called, found[:3], tangents)
    limit = u - limit_target(found, along)
    errors = [
        ((u - discrete_target(called, found, alpha)) / alpha - limit).abs().max().item() / limit.abs().max().item()
        for alpha in (1e-3, 1e-4, 1e-5)
    ]
    assert errors[0] < 0.05 and errors[1] < 0.12 * errors[0] and errors[2] < 0.12 * errors[1]


def test_at_alpha_one_the_target_is_the_velocity_and_so_it_is_without_a_length() -> None:
    network, found, y = asked(MLP)
    called = lambda x, t, r: network(x, t, r, y)  # noqa: E731
    assert torch.equal(discrete_target(called, found, 1.0), found.velocity)
    instant = found._replace(r=found.t)
    assert torch.equal(discrete_target(called, instant, 0.3), found.velocity)


@pytest.mark.parametrize("jumps", [1, 2])
def test_on_the_flow_itself_targets_and_residuals_vanish_with_the_step(jumps: int) -> None:
    _, found, _ = asked(MLP)
    found = found._replace(velocity=of_gaussian(found.x, found.t, found.t))
    exact = of_gaussian(*found[:3])
    errors = [residual(of_gaussian, found, exact, step, jumps).abs().max().item() for step in (1e-3, 1e-4)]
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05) and errors[0] < 0.02
    assert (discrete_target(of_gaussian, found, 1e-3) - exact).abs().max().item() < 1e-5  # of the order alpha^2


def test_a_residual_of_one_jump_is_the_discrete_targets_at_the_share_that_the_step_has() -> None:
    """Its gradient is that of |u - target_a|^2 / a with a = D / (t - r)."""
    network, found, y = asked(MLP)
    found, y = found.rows(2), y[2:]  # intervals longer than D
    called, step = (lambda x, t, r: network(x, t, r, y)), 0.01
    alpha = step / (found.t - found.r)
    prediction = called(*found[:3])
    off = residual(called, found, prediction.detach(), step, 1)
    (by_residual,) = torch.autograd.grad((prediction - (prediction - off).detach()).square().sum(), prediction)
    prediction = prediction.detach().requires_grad_()
    loss = 0.0
    for row in range(len(y)):
        one = found.rows(row, row + 1)
        target = discrete_target(lambda x, t, r, row=row: network(x, t, r, y[row:row + 1]), one, alpha[row].item())
        loss = loss + (prediction[row:row + 1] - target).square().sum() / alpha[row]
    (by_target,) = torch.autograd.grad(loss, prediction)
    torch.testing.assert_close(by_residual, by_target, rtol=1e-9, atol=1e-9)


def test_intervals_shorter_than_the_step_compare_with_the_velocity() -> None:
    network, found, y = asked(MLP)
    for r in (found.t, found.t - 0.004):
        short = found._replace(r=r)
        prediction = network(*short[:3], y).detach()
        off = residual(lambda x, t, r: network(x, t, r, y), short, prediction, 0.01, 2)
        assert torch.equal(off, prediction - found.velocity)


def test_central_differences_are_the_derivative_to_the_square_of_the_step_and_stay_inside() -> None:
    network, found, y = asked(MLP)
    seen = []

    def called(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return network(x, t, found.r.repeat(2), y.repeat(2))

    tangents = found.velocity, torch.ones_like(found.t), torch.zeros_like(found.r)
    _, along = derivative(lambda x, t, r: network(x, t, r, y), found[:3], tangents)
    errors = [
        (central_difference(called, found[:2], found.velocity, found.r, step) - along)[1:].abs().max().item()
        for step in (4e-3, 2e-3)
    ]
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.1)
    high, low = found.t.clone(), found.t - 1e-3  # one has no room above, all have none below
    high[0] = 1.0
    found = found._replace(t=high, r=low)
    assert central_difference(called, found[:2], found.velocity, low, 0.005).isfinite().all()
    after, before = seen[-1].chunk(2)
    assert after.max() <= 1 and torch.equal(after[1:], high[1:] + 0.005 * (high[1:] + 0.005 <= 1))
    assert (after > before).all() and torch.equal(before[1:3], high[1:3])


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_guidance_mixes_inside_of_its_times_by_one_call(kappa: float) -> None:
    _, found, y = asked(MLP)
    calls = []

    def network(x: Tensor, t: Tensor, r: Tensor, labels: Tensor) -> Tensor:
        calls.append(labels)
        assert torch.equal(t, r)
        return wide(torch.where(labels == NO_CLASS, 2.0, 3.0).double()).expand_as(x) + wide(t)

    found = found._replace(t=torch.tensor([0.2, 0.5, 0.8, 0.3], dtype=torch.float64))
    guidance = MixedVelocity(omega=0.4, kappa=kappa, low=0.2, high=0.8)
    mixed, of_class = guidance(network, found, y)
    assert len(calls) == 1 and (of_class is None) == (kappa == 0)
    expected = 0.4 * found.velocity + kappa * (3 + wide(found.t)) + (0.6 - kappa) * (2 + wide(found.t))
    torch.testing.assert_close(mixed[[1, 3]], expected[[1, 3]], rtol=1e-12, atol=1e-12)
    assert torch.equal(mixed[[0, 2]], found.velocity[[0, 2]]), "the ends are not inside"
    of_none, = velocities(network, found.x, found.t, torch.full_like(y, NO_CLASS))
    assert torch.equal(of_none, (2 + wide(found.t)).expand_as(found.x))
