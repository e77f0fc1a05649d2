from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.types import NO_CLASS
from afm_scale.data.toys.mixture2d import ClassMixture
from afm_scale.flow.guidance import FlowGuidance, Guidance, PlainGuidance, VelocityGuidance, guidance_loss, noised

COUNT, SHAPE, NUM_CLASSES = 6, (2, 2, 2), 3
random = torch.Generator().manual_seed(5)
X = torch.randn(COUNT, *SHAPE, dtype=torch.float64, generator=random)
Y = torch.tensor([0, 1, 2, 2, 1, 0])
WEIGHTS = torch.randn(NUM_CLASSES, 8, dtype=torch.float64, generator=random)
T = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.0, 0.49])
DRAWS = KeyedDraws(0, 3, "generator", positions=Positions(0, 1, COUNT))


def linear_classifier(x: Tensor, t: Tensor) -> Tensor:
    """Logits W x + 10 t on class 0, so that the time matters."""
    return x.flatten(1) @ WEIGHTS.T + 10 * t.double()[:, None] * torch.tensor([1.0, 0.0, 0.0])


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return torch.log(torch.exp(logits).sum(1)) - logits[torch.arange(len(y)), y]


def test_plain_guidance_is_the_mean_cross_entropy_where_times_outside_count_as_zero() -> None:
    guidance = PlainGuidance(weight=0.02, low=0.0, high=0.49)
    loss = guidance_loss(guidance, linear_classifier, X, T, Y, DRAWS)
    each = cross_entropy(linear_classifier(X, T), Y)
    expected = 0.02 * each[[0, 1, 4, 5]].sum() / COUNT  # over the batch, not over those inside
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


def test_plain_guidance_pulls_along_the_classifiers_gradient_and_only_inside() -> None:
    x = X.clone().requires_grad_()
    guidance_loss(PlainGuidance(weight=0.02, low=0.0, high=0.25), linear_classifier, x, T, Y, DRAWS).backward()
    wrong = torch.softmax(linear_classifier(X, T), dim=1) - torch.eye(NUM_CLASSES, dtype=torch.float64)[Y]
    inside = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    expected = 0.02 / COUNT * inside[:, None] * (wrong @ WEIGHTS)
    torch.testing.assert_close(x.grad.flatten(1), expected, rtol=1e-12, atol=1e-16)


def test_flow_guidance_shows_the_classifier_freshly_noised_samples_and_their_times() -> None:
    guidance = FlowGuidance(weight=0.003, low=0.1, high=0.6)
    seen, time = noised(guidance, X, DRAWS)
    assert (time >= 0.1).all() and (time <= 0.6).all() and len(time.unique()) == COUNT
    t = time.double().view(-1, 1, 1, 1)
    noise = (seen - (1 - t) * X) / t
    torch.testing.assert_close(noise, DRAWS.normal("guidance noise", SHAPE).double(), rtol=0, atol=1e-12)
    loss = guidance_loss(guidance, linear_classifier, X, T, Y, DRAWS)
    expected = 0.003 * cross_entropy(linear_classifier(seen, time), Y).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


def test_flow_guidance_reaches_the_sample_through_its_share_of_the_mixture() -> None:
    x = X.clone().requires_grad_()
    guidance = FlowGuidance(weight=1.0, low=0.1, high=0.6)
    guidance_loss(guidance, linear_classifier, x, T, Y, DRAWS).backward()
    seen, time = noised(guidance, X, DRAWS)
    wrong = torch.softmax(linear_classifier(seen, time), dim=1) - torch.eye(NUM_CLASSES, dtype=torch.float64)[Y]
    expected = (1 - time.double())[:, None] / COUNT * (wrong @ WEIGHTS)
    torch.testing.assert_close(x.grad.flatten(1), expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("kind", [FlowGuidance, PlainGuidance])
def test_twice_the_weight_is_twice_the_loss(kind: type) -> None:
    guidances = [kind(weight=weight, low=0.0, high=0.1) for weight in (1.0, 2.0)]
    one, two = (guidance_loss(guidance, linear_classifier, X, T, Y, DRAWS) for guidance in guidances)
    assert one > 0
    torch.testing.assert_close(two, 2 * one, rtol=1e-14, atol=0)


# Four classes in the plane, of which everything is known exactly.
MIXTURE = ClassMixture(centres=((0.0, 0.0), (1.0, 0.2), (-0.3, 0.9), (-0.8, -0.7)), sigma=0.3)
MANY = 64
MANY_DRAWS = KeyedDraws(0, 3, "generator", positions=Positions(0, 1, MANY))
CLASSES = torch.arange(MANY) % 4
POINTS = MIXTURE.places("cpu")[CLASSES] + 0.4 * torch.randn(MANY, 2, dtype=torch.float64, generator=random)
POINTS = POINTS.view(MANY, 2, 1, 1)
ZERO = torch.zeros(MANY)


def exact_classifier(x: Tensor, t: Tensor) -> Tensor:
    return MIXTURE.log_posterior(x.flatten(1), t)


def exact_velocity(x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """E[z - x | x_t], of the class y or, for NO_CLASS, of all: what a perfect flow model returns at s = t."""
    assert torch.equal(s, t)
    time = t.double()[:, None, None]
    variance = ((1 - time) * MIXTURE.sigma) ** 2 + time**2
    offset = x.flatten(1)[:, None] - (1 - time) * MIXTURE.places("cpu")  # [B, K, 2]
    rate = (time - (1 - time) * MIXTURE.sigma**2) / variance
    of_classes = rate * offset - MIXTURE.places("cpu")
    known = torch.nn.functional.one_hot(y.clamp(min=0), 4).double()
    share = torch.where((y == NO_CLASS)[:, None], MIXTURE.log_posterior(x.flatten(1), t).exp(), known)
    return (share[:, :, None] * of_classes).sum(1).view_as(x)


EXACT = {"classifier": exact_classifier, "flow": exact_velocity}


def gradient_of(guidance: Guidance) -> Tensor:
    x = POINTS.clone().requires_grad_()
    guidance_loss(guidance, EXACT[guidance.guide], x, ZERO, CLASSES, MANY_DRAWS).backward()
    return x.grad


def test_velocity_guidance_pulls_as_flow_guidance_with_the_exact_classifier_does() -> None:
    settings = {"weight": 0.7, "low": 0.2, "high": 0.8}
    by_velocity = gradient_of(VelocityGuidance(**settings))
    by_classifier = gradient_of(FlowGuidance(**settings))
    _, time = noised(FlowGuidance(**settings), POINTS, MANY_DRAWS)
    time = time.double().view(-1, 1, 1, 1)
    assert by_velocity.abs().max() > 1e-3
    torch.testing.assert_close(by_velocity, by_classifier * time / ((1 - time) ** 2 * 2), rtol=1e-10, atol=1e-14)


def test_velocity_guidance_shows_the_flow_model_the_same_noised_sample_without_and_with_its_class() -> None:
    seen = []

    def flow(x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((x, s, t, y))
        return exact_velocity(x, s, t, y)

    guidance = VelocityGuidance(weight=1.0, low=0.1, high=0.6)
    guidance_loss(guidance, flow, POINTS, ZERO, CLASSES, MANY_DRAWS)
    (x, s, t, y), (x_again, _, t_again, y_again) = seen
    assert torch.equal(x, x_again) and torch.equal(t, t_again) and torch.equal(s, t)
    assert (y == NO_CLASS).all() and torch.equal(y_again, CLASSES)
    expected, time = noised(guidance, POINTS, MANY_DRAWS)
    assert torch.equal(x, expected) and torch.equal(t, time)


@pytest.mark.parametrize("guidance", [
    FlowGuidance(weight=0.3, low=0.1, high=0.7), PlainGuidance(weight=0.3, low=0.0, high=0.0),
])
def test_the_gradient_of_a_classifiers_guidance_is_that_of_its_loss(guidance: Guidance) -> None:
    gradient = gradient_of(guidance)
    for sample, axis in ((0, 0), (1, 1), (6, 0), (63, 1)):
        losses = []
        for step in (-1e-5, 1e-5):
            moved = POINTS.clone()
            moved[sample, axis] += step
            losses.append(float(guidance_loss(guidance, EXACT[guidance.guide], moved, ZERO, CLASSES, MANY_DRAWS)))
        assert math.isclose((losses[1] - losses[0]) / 2e-5, float(gradient[sample, axis]), rel_tol=1e-6, abs_tol=1e-9)


def test_the_loss_of_velocity_guidance_is_linear_in_the_sample_and_its_slope_reaches_no_network() -> None:
    # What the flow model says is a constant, so with its answer held fixed the loss is a plain inner product.
    guidance = VelocityGuidance(weight=0.7, low=0.2, high=0.8)
    seen, time = noised(guidance, POINTS, MANY_DRAWS)
    difference = exact_velocity(seen, time, time, torch.full_like(CLASSES, NO_CLASS))
    difference = difference - exact_velocity(seen, time, time, CLASSES)
    loss = guidance_loss(guidance, exact_velocity, POINTS, ZERO, CLASSES, MANY_DRAWS)
    torch.testing.assert_close(loss, -0.7 * (POINTS * difference).mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient_of(guidance), -0.7 * difference / POINTS.numel(), rtol=1e-13, atol=0)


def test_guidance_by_velocity_raises_the_posterior_of_the_class() -> None:
    step = 20.0
    before = MIXTURE.log_posterior(POINTS.flatten(1), ZERO)[torch.arange(MANY), CLASSES]
    moved = POINTS - step * gradient_of(VelocityGuidance(weight=0.1, low=0.2, high=0.8))
    after = MIXTURE.log_posterior(moved.flatten(1), ZERO)[torch.arange(MANY), CLASSES]
    assert after.mean() > before.mean()
