from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import ConfigError
from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.typed import build
from afm_scale.core.types import NO_CLASS, Batch, Networks, Role
from afm_scale.flow.path import Prediction
from afm_scale.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from tests.objectives.small import CPU, SmallGenerator, batch_of, draws_of, parts_of


def flow_matching(**changes: float) -> FlowMatching:
    return FlowMatching(FlowMatchingConfig(**changes), lambda value: value, CPU)


def nets_of(generator: object) -> Networks:
    return Networks(generator, generator)


def test_the_loss_is_the_mean_squared_distance_to_the_velocity() -> None:
    batch, seen = batch_of(3), []

    def generator(x_t: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((x_t, s, t))
        return torch.zeros_like(x_t)

    loss = flow_matching().loss(Role.GENERATOR, nets_of(generator), batch, draws_of(3), step=0)
    ((x_t, s, t),) = seen
    assert torch.equal(s, t) and len(t.unique()) == 3
    z = draws_of(3).normal("source noise", batch.x.shape[1:]).double()
    time = t.double().view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - time) * batch.x + time * z, rtol=0, atol=1e-14)
    torch.testing.assert_close(loss.total, (z - batch.x).square().mean(), rtol=1e-13, atol=0)
    assert torch.equal(loss.terms["total"], loss.total)


def test_the_true_velocity_has_no_loss() -> None:
    batch = batch_of(4)
    velocity = draws_of(4).normal("source noise", batch.x.shape[1:]).double() - batch.x
    loss = flow_matching().loss(Role.GENERATOR, nets_of(lambda *inputs: velocity), batch, draws_of(4), step=0)
    assert loss.total == 0


def test_the_conditional_mean_of_the_velocity_is_stationary_for_gaussian_data() -> None:
    # x ~ N(m, d^2), so E[z - x | x_t] = (t - (1 - t) d^2) / ((1 - t)^2 d^2 + t^2) (x_t - (1 - t) m) - m.
    count, mean, variance = 40_000, 0.7, 0.25
    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)  # ways to leave the optimum
    slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bend = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def velocity(x_t: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        t = t.double().view(-1, 1, 1, 1)
        rate = (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2)
        best = rate * (x_t - (1 - t) * mean) - mean
        return best + offset + slope * x_t + bend * t * x_t**2

    x = mean + variance**0.5 * KeyedDraws("data", positions=Positions(0, 1, count)).normal("x", (1, 1, 1)).double()
    batch = Batch(x, torch.zeros(count, dtype=torch.int64))
    total = flow_matching().loss(Role.GENERATOR, nets_of(velocity), batch, draws_of(count), step=0).total
    gradients = torch.autograd.grad(total, (offset, slope, bend))
    for name, gradient in zip(("offset", "slope", "bend"), gradients, strict=True):
        assert abs(gradient) < 0.06, name  # 4 standard errors at most; an error of 0.1 in the mean would give 0.2
    # What is left is E Var(z - x | x_t), 0.25 / ((1 - t)^2 / 4 + t^2) averaged over t.
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    expected = (variance / ((1 - t) ** 2 * variance + t**2)).mean().item()
    assert total.item() == pytest.approx(expected, rel=0.02)


def test_the_mean_over_ranks_and_microbatches_is_the_loss_on_one_rank() -> None:
    nets, batch = nets_of(SmallGenerator()), batch_of(12)
    whole = flow_matching().loss(Role.GENERATOR, nets, batch, draws_of(12), step=0).total
    for world_size, accumulation in ((2, 1), (1, 3), (2, 3)):
        parts = [part for rank in parts_of(batch, world_size, accumulation) for part in rank]
        totals = torch.stack([flow_matching().loss(Role.GENERATOR, nets, *part, step=0).total for part in parts])
        torch.testing.assert_close(totals.mean(), whole, rtol=1e-13, atol=0)


def test_logit_normal_times_have_the_median_and_spread_asked_for() -> None:
    seen = []

    def generator(x_t: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(t)
        return x_t

    objective = flow_matching(time_mean=-0.4, time_std=1.5)
    objective.loss(Role.GENERATOR, nets_of(generator), batch_of(4000), draws_of(4000), 0)
    logit = torch.logit(seen[0].double())
    assert logit.mean().item() == pytest.approx(-0.4, abs=4 * 1.5 / 4000**0.5)
    assert logit.std().item() == pytest.approx(1.5, rel=4 / 8000**0.5)


def test_it_is_a_game_of_one_that_remembers_nothing() -> None:
    objective = flow_matching()
    assert objective.turns(0) == ((Role.GENERATOR,),)
    assert objective.prediction is Prediction.V
    assert objective.state_dict() == {}


def labels_seen(count: int, **changes: float) -> Tensor:
    seen = []

    def generator(x_t: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return x_t

    flow_matching(**changes).loss(Role.GENERATOR, nets_of(generator), batch_of(count), draws_of(count), step=0)
    return seen[0]


def test_class_dropout_hides_the_class_of_its_share_of_the_samples_and_no_others() -> None:
    labels = labels_seen(4000, class_dropout=0.3)
    hidden = labels == NO_CLASS
    assert hidden.double().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)
    assert torch.equal(labels[~hidden], batch_of(4000).y[~hidden])
    assert torch.equal(labels_seen(50), batch_of(50).y)


def test_which_classes_are_hidden_does_not_depend_on_ranks_and_microbatches() -> None:
    objective, seen = flow_matching(class_dropout=0.5), []

    def generator(x_t: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return x_t

    for rank in parts_of(batch_of(12), 2, 3):
        for part in rank:
            objective.loss(Role.GENERATOR, nets_of(generator), *part, step=0)
    places = [range(rank + 2 * micro, 12, 6) for rank in range(2) for micro in range(3)]
    whole = labels_seen(12, class_dropout=0.5)
    assert 0 < (whole == NO_CLASS).sum() < 12
    for place, labels in zip(places, seen, strict=True):
        assert torch.equal(labels, whole[list(place)])


@pytest.mark.parametrize("wrong", [-0.1, 1.0])
def test_a_class_dropout_that_is_no_probability_or_hides_all_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match="class_dropout: found .*, wanted a number of at least 0, below 1"):
        build(FlowMatchingConfig, {"class_dropout": wrong})
