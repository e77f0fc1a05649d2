from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from afm_scale.core.types import Batch, Networks, Role
from afm_scale.objectives.classification import Classification, ClassificationConfig
from tests.objectives.small import CPU, NUM_CLASSES, SHAPE, batch_of, draws_of, linear_classifier, normal, parts_of


def classification() -> Classification:
    return Classification(ClassificationConfig(), lambda value: value, CPU)


def nets_of(classifier: object) -> Networks:
    return Networks(generator=None, average=classifier, classifier=classifier)


def draws(count: int):
    return draws_of(count, role="classifier")


def test_the_loss_is_the_cross_entropy_of_the_noised_samples() -> None:
    batch, seen = batch_of(5), []

    def classifier(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append((x_t, t))
        return linear_classifier(x_t, t)

    loss = classification().loss(Role.CLASSIFIER, nets_of(classifier), batch, draws(5), step=0)
    ((x_t, t),) = seen
    assert t.dtype == torch.float32 and len(t.unique()) == 5
    z = draws(5).normal("source noise", SHAPE).double()
    time = t.double().view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - time) * batch.x + time * z, rtol=0, atol=1e-14)
    logits = linear_classifier(x_t, t)
    by_hand = -(logits.exp() / logits.exp().sum(1, keepdim=True))[torch.arange(5), batch.y].log()
    torch.testing.assert_close(loss.total, by_hand.mean(), rtol=1e-12, atol=0)
    assert torch.equal(loss.terms["total"], loss.total)


def test_times_are_uniform_on_the_unit_interval() -> None:
    count, seen = 20_000, []

    def classifier(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return torch.zeros(len(t), NUM_CLASSES, dtype=x_t.dtype)

    classification().loss(Role.CLASSIFIER, nets_of(classifier), batch_of(count), draws(count), step=0)
    t = seen[0].double().sort().values
    assert t[0] >= 0 and t[-1] < 1
    grid = (torch.arange(count) + 0.5) / count
    assert (t - grid).abs().max() < 1.95 / count**0.5  # Kolmogorov and Smirnov, one in a thousand


def test_one_that_knows_nothing_has_the_entropy_of_the_classes_and_one_that_is_sure_of_the_wrong_class_pays() -> None:
    batch = batch_of(6)

    def loss_of(logits: Tensor):
        return classification().loss(Role.CLASSIFIER, nets_of(lambda x, t: logits), batch, draws(6), step=0)

    assert loss_of(torch.zeros(6, NUM_CLASSES).double()).total.item() == pytest.approx(math.log(NUM_CLASSES), rel=1e-14)
    right = 7.0 * torch.nn.functional.one_hot(batch.y, NUM_CLASSES).double()
    expected = math.log(1 + (NUM_CLASSES - 1) * math.exp(-7.0))
    assert loss_of(right).total.item() == pytest.approx(expected, rel=1e-12)
    assert loss_of(right).terms["accuracy"] == 1
    wrong = right.roll(1, dims=1)
    assert loss_of(wrong).total.item() == pytest.approx(7.0 + expected, rel=1e-12)
    assert loss_of(wrong).terms["accuracy"] == 0


def test_the_accuracy_is_the_share_of_classes_that_are_the_likeliest() -> None:
    batch = Batch(normal(4, *SHAPE), torch.tensor([0, 1, 2, 0]))
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 1, 2], [3, 1, 2]]).double()
    loss = classification().loss(Role.CLASSIFIER, nets_of(lambda x, t: logits), batch, draws(4), step=0)
    assert loss.terms["accuracy"] == 0.75


def test_the_gradient_is_that_of_the_softmax() -> None:
    batch = batch_of(4)
    logits = normal(4, NUM_CLASSES, name="logits").requires_grad_()
    loss = classification().loss(Role.CLASSIFIER, nets_of(lambda x, t: logits), batch, draws(4), step=0)
    (gradient,) = torch.autograd.grad(loss.total, logits)
    expected = (logits.softmax(1) - torch.nn.functional.one_hot(batch.y, NUM_CLASSES)) / 4
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-13, atol=1e-16)
    assert not any(term.requires_grad for term in loss.terms.values())


def test_the_mean_over_ranks_and_microbatches_is_the_loss_on_one_rank() -> None:
    nets, batch = nets_of(linear_classifier), batch_of(12)
    whole = classification().loss(Role.CLASSIFIER, nets, batch, draws(12), step=0)
    for world_size, accumulation in ((2, 1), (1, 3), (2, 3)):
        ranks = parts_of(batch, world_size, accumulation, role="classifier")
        losses = [classification().loss(Role.CLASSIFIER, nets, *part, step=0) for rank in ranks for part in rank]
        for name, value in whole.terms.items():
            mean = torch.stack([loss.terms[name] for loss in losses]).mean()
            torch.testing.assert_close(mean, value, rtol=1e-13, atol=0)


def test_it_is_a_game_of_one_that_remembers_nothing() -> None:
    objective = classification()
    assert objective.turns(0) == objective.turns(7) == ((Role.CLASSIFIER,),)
    assert objective.learner is Role.CLASSIFIER
    assert objective.state_dict() == {}
