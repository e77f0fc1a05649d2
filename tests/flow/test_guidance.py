from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.flow.guidance import FlowGuidance, PlainGuidance, guidance_loss

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
    seen, time = guidance.classifier_input(X, T, DRAWS)
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
    seen, time = guidance.classifier_input(X, T, DRAWS)
    wrong = torch.softmax(linear_classifier(seen, time), dim=1) - torch.eye(NUM_CLASSES, dtype=torch.float64)[Y]
    expected = (1 - time.double())[:, None] / COUNT * (wrong @ WEIGHTS)
    torch.testing.assert_close(x.grad.flatten(1), expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("kind", [FlowGuidance, PlainGuidance])
def test_twice_the_weight_is_twice_the_loss(kind: type) -> None:
    guidances = [kind(weight=weight, low=0.0, high=0.1) for weight in (1.0, 2.0)]
    one, two = (guidance_loss(guidance, linear_classifier, X, T, Y, DRAWS) for guidance in guidances)
    assert one > 0
    torch.testing.assert_close(two, 2 * one, rtol=1e-14, atol=0)
