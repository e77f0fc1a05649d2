from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from afm_scale.core.types import Role
from afm_scale.objectives.gradient_scale import GradientScale, GradientScaleConfig, first_order, scaled_square
from tests.objectives.small import (
    CPU,
    SHAPE,
    SmallDiscriminator,
    SmallGenerator,
    batch_of,
    game,
    networks,
    normal,
    parts_of,
    scale_of,
)

EXACT = {"rtol": 1e-12, "atol": 1e-15}


class Updates(NamedTuple):
    gradients: Sequence[Sequence[Tensor]]  # of the generator's parameters, by update
    square_avg: Tensor


def scale(**changes: float) -> GradientScale:
    return GradientScale(GradientScaleConfig(**changes), lambda value: value, CPU)


def after(operator: GradientScale, *gradients: Tensor) -> Tensor:
    """What the last of a sequence of updates, one gradient each, turns its gradient into."""
    for gradient in gradients:
        operator.observe(scaled_square(gradient))
        scaled = operator(gradient)
    return scaled


def test_the_first_update_is_the_root_of_ten_too_large_because_the_average_starts_at_zero() -> None:
    gradient = normal(5, *SHAPE)
    root_mean_square = after(scale(), gradient).square().mean().sqrt()
    expected = math.sqrt(10) / gradient.numel()
    assert root_mean_square.item() == pytest.approx(expected, rel=1e-7)  # eps is what is left


def test_the_average_of_squares_follows_its_closed_form() -> None:
    operator, gradients = scale(decay=0.7), [normal(5, *SHAPE, name=str(k)) for k in range(4)]
    after(operator, *gradients)
    expected = sum(0.3 * 0.7 ** (3 - k) * g.numel() * g.square().sum() for k, g in enumerate(gradients))
    torch.testing.assert_close(operator.square_avg, expected, **EXACT)


def test_a_constant_gradient_ends_with_the_target_size_whatever_the_batch() -> None:
    for count in (1, 4, 16):
        gradient = normal(count, *SHAPE)
        scaled = after(scale(target=3.0), *[gradient] * 400)
        per_sample = count * scaled  # without the 1 / B of the batch mean
        assert per_sample.square().mean().sqrt().item() == pytest.approx(3.0 / normal(*SHAPE).numel(), rel=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 7.0, 1e6])
def test_scaling_the_loss_changes_nothing(factor: float) -> None:
    gradients = [normal(5, *SHAPE, name=str(k)) for k in range(3)]
    plain = after(scale(eps=0.0), *gradients)
    torch.testing.assert_close(after(scale(eps=0.0), *[factor * g for g in gradients]), plain, **EXACT)


def test_eps_keeps_a_vanished_gradient_at_zero() -> None:
    assert torch.equal(after(scale(), torch.zeros(2, *SHAPE)), torch.zeros(2, *SHAPE))


def test_the_average_moves_once_for_all_microbatches_of_an_update() -> None:
    operator, gradients = scale(), [normal(2, *SHAPE, name=str(k)) for k in range(3)]
    for gradient in gradients:
        operator.observe(scaled_square(gradient))
    scaled = [operator(gradient) for gradient in gradients]
    q = torch.stack([g.numel() * g.square().sum() for g in gradients]).mean()
    torch.testing.assert_close(operator.square_avg, 0.1 * q, **EXACT)
    for before, now in zip(gradients, scaled, strict=True):
        torch.testing.assert_close(now, before / (torch.sqrt(0.1 * q) + 1e-8), **EXACT)


def test_float32_gradients_are_counted_in_a_float64_average_and_stay_float32() -> None:
    gradient = normal(5, *SHAPE).float()
    operator = scale()
    assert after(operator, gradient).dtype == torch.float32
    assert operator.square_avg.dtype == torch.float64
    expected = 0.1 * gradient.numel() * gradient.double().square().sum()
    torch.testing.assert_close(operator.square_avg, expected, rtol=1e-6, atol=0)


def test_first_order_has_the_value_and_the_gradient_it_is_given() -> None:
    x, value, gradient = normal(3, 4, name="x").requires_grad_(), normal(), normal(3, 4, name="gradient")
    scalar = first_order(2 * x, value, gradient)
    assert torch.equal(scalar, value)
    (5 * scalar).backward()
    torch.testing.assert_close(x.grad, 10 * gradient, **EXACT)


def test_first_order_of_the_true_gradient_is_the_function_to_the_parameters() -> None:
    generator, discriminator, batch = SmallGenerator(), SmallDiscriminator(), batch_of(4)
    zero = torch.zeros(4)
    parameters = tuple(generator.parameters())
    fake = generator(batch.x, zero, zero, batch.y)
    expected = torch.autograd.grad(discriminator(fake, zero, batch.y).mean(), parameters, retain_graph=True)
    leaf = fake.detach().requires_grad_()
    value = discriminator(leaf, zero, batch.y).mean()
    (gradient,) = torch.autograd.grad(value, leaf)
    found = torch.autograd.grad(first_order(fake, value.detach(), gradient), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def updates_of(rank: int, world_size: int, accumulation: int, reduce: Callable[[Tensor], Tensor]) -> Updates:
    """What one rank computes in three updates with the batch of 8 split as told."""
    nets, objective = networks(), game(reduce)
    parameters = tuple(nets.generator.parameters())
    gradients = []
    for step in range(3):
        micros = parts_of(batch_of(8), world_size, accumulation, step)[rank]
        if len(micros) > 1:
            for part, draws in micros:
                objective.survey(Role.GENERATOR, nets, part, draws, step)
        totals = [objective.generator_loss(nets, part, draws, step).total for part, draws in micros]
        gradients.append(torch.autograd.grad(sum(totals) / len(micros), parameters))
    return Updates(gradients, scale_of(objective))


def updates_over_ranks(world_size: int, accumulation: int) -> Updates:
    """The mean over ranks of every gradient, as the plan would make it."""
    reduced: list[list[Tensor]] = [[] for _ in range(world_size)]  # by rank: no answer changes what is asked next
    for rank in range(world_size):
        updates_of(rank, world_size, accumulation, lambda value, rank=rank: reduced[rank].append(value) or value)
    means = [sum(values) / world_size for values in zip(*reduced, strict=True)]
    assert len(means) == 3  # one collective for each update
    ranks = []
    for rank in range(world_size):
        answers = iter(means)
        ranks.append(updates_of(rank, world_size, accumulation, lambda value, answers=answers: next(answers)))
    assert all(torch.equal(other.square_avg, ranks[0].square_avg) for other in ranks)
    by_update = zip(*(other.gradients for other in ranks), strict=True)
    gradients = [[sum(each) / world_size for each in zip(*update, strict=True)] for update in by_update]
    return Updates(gradients, ranks[0].square_avg)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 2), (1, 4), (1, 8), (2, 1), (4, 2)])
def test_the_generators_gradient_does_not_depend_on_how_the_batch_is_split(world_size: int, accumulation: int) -> None:
    expected, found = updates_over_ranks(1, 1), updates_over_ranks(world_size, accumulation)
    torch.testing.assert_close(found.square_avg, expected.square_avg, rtol=1e-13, atol=0)
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        for gradient, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12 * other.abs().max().item())
