"""Each term of the two losses in closed form, on networks simple enough to do the sums by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from afm_scale.core.schedules import Constant, Cosine
from afm_scale.core.types import Batch, Loss
from afm_scale.flow.guidance import FlowGuidance, PlainGuidance, guidance_loss
from afm_scale.flow.path import Prediction
from afm_scale.flow.times import AnyTimes, GridTimes
from afm_scale.objectives.afm import AdversarialFlow, PenaltyConfig
from afm_scale.objectives.augment import AugmentationConfig, paired_augmentation
from afm_scale.objectives.gradient_scale import GradientScaleConfig
from tests.objectives.small import (
    SHAPE,
    SmallDiscriminator,
    batch_of,
    constant_output,
    draws_of,
    game,
    mean_logit,
    networks,
    normal,
)

SIZE = math.prod(SHAPE)
EXACT = {"rtol": 1e-12, "atol": 1e-14}
REAL = torch.tensor([0.3, -2.0, 40.0, 0.0], dtype=torch.float64)
FAKE = torch.tensor([1.1, 0.5, -40.0, 0.0], dtype=torch.float64)


def known_logits() -> tuple[Batch, Callable[..., Tensor]]:
    """A batch of constant samples that `mean_logit` judges as REAL, beside a generator judged as FAKE."""
    batch = batch_of(4)
    return replace(batch, x=REAL.view(-1, 1, 1, 1).expand(4, *SHAPE).clone()), constant_output(FAKE)


def discriminator_loss(objective: AdversarialFlow, batch: Batch, **nets: object) -> Loss:
    return objective.discriminator_loss(networks(**nets), batch, draws_of(len(batch.y)), step=0)


def generator_loss(objective: AdversarialFlow, batch: Batch, step: int = 0, **nets: object) -> Loss:
    return objective.generator_loss(networks(**nets), batch, draws_of(len(batch.y)), step=step)


def source_of(batch: Batch, objective_times: object = GridTimes(steps=1)) -> tuple[Tensor, Tensor, Tensor]:
    """(x_s, s, t) of the turn."""
    draws = draws_of(len(batch.y))
    s, t = objective_times(draws)
    time = s.double().view(-1, 1, 1, 1)
    return (1 - time) * batch.x + time * draws.normal("source noise", SHAPE).double(), s.double(), t.double()


def softplus(values: Tensor) -> float:
    return sum(math.log1p(math.exp(-abs(v))) + max(v, 0.0) for v in values.tolist()) / len(values)


def test_the_discriminators_loss_is_the_relativistic_one_at_known_logits() -> None:
    batch, generator = known_logits()
    terms = discriminator_loss(game(), batch, generator=generator, discriminator=mean_logit).terms
    assert terms["adversarial"].item() == pytest.approx(softplus(-(REAL - FAKE)), rel=1e-13)
    assert terms["logit_real"].item() == pytest.approx(REAL.mean().item())
    assert terms["logit_fake"].item() == pytest.approx(FAKE.mean().item())


def test_the_generators_loss_is_the_same_with_the_sides_changed() -> None:
    batch, generator = known_logits()
    terms = generator_loss(game(), batch, generator=generator, discriminator=mean_logit).terms
    assert terms["adversarial"].item() == pytest.approx(softplus(-(FAKE - REAL)), rel=1e-13)
    assert terms["logit_real"].item() == pytest.approx(REAL.mean().item())
    assert terms["logit_fake"].item() == pytest.approx(FAKE.mean().item())


def test_equal_logits_cost_ln_2() -> None:
    batch = batch_of(4)
    loss = discriminator_loss(game(), batch, discriminator=lambda x, t, y: torch.zeros(len(x), dtype=x.dtype))
    assert loss.total.item() == pytest.approx(math.log(2), rel=1e-14)


def test_centring_is_the_square_of_the_sum_of_a_pair() -> None:
    batch, generator = known_logits()
    objective = game(centring_weight=0.25)
    terms = discriminator_loss(objective, batch, generator=generator, discriminator=mean_logit).terms
    assert terms["centring"].item() == pytest.approx(0.25 * (1.4**2 + 1.5**2 + 0 + 0) / 4, rel=1e-13)


def test_the_penalties_are_finite_differences_along_the_noise() -> None:
    # For D(x) = b x + x A x / 2 the difference is exactly e (b + A x) + epsilon e A e / 2.
    symmetric, slope, epsilon, count = normal(SIZE, SIZE, name="A"), normal(SIZE, name="b"), 0.1, 6
    symmetric = (symmetric + symmetric.T) / 2

    def quadratic(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = x.flatten(1)
        return x @ slope + (x @ symmetric * x).sum(1) / 2

    batch, fake = batch_of(count), normal(count, *SHAPE, name="fake")
    objective = game(penalty=PenaltyConfig(weight=0.3, share=0.5, epsilon=epsilon))
    terms = discriminator_loss(objective, batch, generator=lambda *given: fake, discriminator=quadratic).terms
    for name, at in (("r1", batch.x), ("r2", fake)):
        x, e = at.flatten(1), draws_of(count).normal(f"{name} noise", SHAPE).double().flatten(1)
        difference = (e * (slope + x @ symmetric)).sum(1) + epsilon * (e @ symmetric * e).sum(1) / 2
        expected = 0.3 * difference[:3].square().mean()  # the first half
        torch.testing.assert_close(terms[name], expected, rtol=1e-10, atol=0)


def test_the_penalties_tend_to_the_squared_gradient_as_epsilon_shrinks() -> None:
    count, discriminator = 20_000, SmallDiscriminator()
    one = batch_of(1)
    batch = Batch(one.x.expand(count, *SHAPE), one.y.expand(count))  # one point, many noises
    x = one.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x, torch.zeros(1), one.y).sum(), x)
    noise = draws_of(count).normal("r1 noise", SHAPE).double()
    along_noise = (noise * gradient).flatten(1).sum(1).square().mean().item()
    assert along_noise == pytest.approx(gradient.square().sum().item(), rel=4 * math.sqrt(2 / count))
    errors = []
    for epsilon in (1e-1, 1e-2, 1e-3, 1e-4):
        objective = game(penalty=PenaltyConfig(weight=1.0, share=1.0, epsilon=epsilon))
        with torch.no_grad():
            terms = discriminator_loss(objective, batch, discriminator=discriminator).terms
        errors.append(abs(terms["r1"].item() / along_noise - 1))
    assert errors[3] < 1e-5
    assert all(smaller < larger / 5 for larger, smaller in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("steps", [1, 4])
def test_penalties_are_weighted_by_the_length_of_the_step_and_transport_is_divided_by_it(steps: int) -> None:
    batch = batch_of(8)
    objective = game(times=GridTimes(steps=steps), penalty=PenaltyConfig(weight=1.0, share=1.0, epsilon=0.5))
    slope = normal(SIZE, name="b")
    nets = {"generator": lambda x, s, t, y: x + 3, "discriminator": lambda x, t, y: x.flatten(1) @ slope}
    noise = draws_of(8).normal("r2 noise", SHAPE).double().flatten(1)
    expected = (noise @ slope).square().mean() / steps  # exact for a linear D, whatever epsilon
    r2 = discriminator_loss(objective, batch, **nets).terms["r2"]
    torch.testing.assert_close(r2, expected, rtol=1e-11, atol=0)
    transport = generator_loss(objective, batch, **nets).terms["transport"]
    torch.testing.assert_close(transport, torch.tensor(0.2 * 9 * steps, dtype=torch.float64), **EXACT)


def test_transport_is_the_mean_over_channels_and_pixels_and_then_over_samples() -> None:
    batch = batch_of(5)
    offset = normal(5, *SHAPE, name="offset")
    times = AnyTimes()
    objective = game(times=times, transport_weight=Constant(value=0.7))
    terms = generator_loss(objective, batch, generator=lambda x, s, t, y: x + offset).terms
    _, s, t = source_of(batch, times)
    expected = sum(0.7 * offset[i].square().sum() / (SIZE * (s[i] - t[i])) for i in range(5)) / 5
    torch.testing.assert_close(terms["transport"], expected, **EXACT)


@pytest.mark.parametrize("times", [GridTimes(steps=1), GridTimes(steps=3), AnyTimes()])
def test_a_generator_that_moves_nothing_has_no_transport_cost(times: object) -> None:
    still = game(prediction=Prediction.V, times=times)
    assert generator_loss(still, batch_of(6), generator=lambda x, s, t, y: torch.zeros_like(x)).terms["transport"] == 0
    same = game(prediction=Prediction.X, times=times)
    assert generator_loss(same, batch_of(6), generator=lambda x, s, t, y: x).terms["transport"] == 0


def test_transport_of_a_velocity_is_the_kinetic_energy_times_the_length() -> None:
    objective = game(prediction=Prediction.V, times=GridTimes(steps=4))
    velocity = normal(6, *SHAPE, name="velocity")
    terms = generator_loss(objective, batch_of(6), generator=lambda *given: velocity).terms
    torch.testing.assert_close(terms["transport"], 0.2 * velocity.square().mean() / 4, **EXACT)


def test_the_transport_weight_follows_its_schedule() -> None:
    schedule = Cosine(start=0.2, end=0.01, steps=100)
    objective = game(transport_weight=schedule)
    for step in (0, 40, 200):
        terms = generator_loss(objective, batch_of(4), step=step, generator=lambda x, s, t, y: x + 2).terms
        assert terms["transport"].item() == pytest.approx(4 * schedule(step), rel=1e-12)


def test_real_and_source_come_from_the_same_sample_with_noises_of_their_own() -> None:
    batch, times, seen = batch_of(6), GridTimes(steps=3), {}

    def generator(x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.update(source=x, s=s, t=t, label=y)
        return torch.zeros_like(x)

    def discriminator(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.update(judged=x, told_time=t, told_label=y)
        return mean_logit(x, t, y)

    discriminator_loss(game(times=times), batch, generator=generator, discriminator=discriminator)
    x_s, s, t = source_of(batch, times)
    torch.testing.assert_close(seen["source"], x_s, **EXACT)
    target_noise = draws_of(6).normal("target noise", SHAPE).double()
    time = t.view(-1, 1, 1, 1)
    torch.testing.assert_close(seen["judged"][:6], (1 - time) * batch.x + time * target_noise, **EXACT)
    assert not torch.equal(target_noise, draws_of(6).normal("source noise", SHAPE).double())
    assert torch.equal(seen["told_time"][:12], seen["t"].repeat(2))  # D is told the target time, not the source time
    assert torch.equal(seen["told_label"][:12], batch.y.repeat(2))


@pytest.mark.parametrize("guidance", [None, FlowGuidance(weight=0.3, low=0.0, high=0.1)])
@pytest.mark.parametrize("scale", [None, GradientScaleConfig()])
def test_the_weighted_terms_add_up_to_the_total_and_carry_no_graph(guidance: object, scale: object) -> None:
    objective = game(guidance=guidance, gradient_scale=scale, penalty=PenaltyConfig())
    guided = {"guidance"} if guidance else set()
    watched = {"adversarial_gradient_square", "transport_cost"}
    for loss, parts, beside in (
        (discriminator_loss(objective, batch_of(8)), {"adversarial", "r1", "r2", "centring"}, set()),
        (generator_loss(objective, batch_of(8)), {"adversarial", "transport"} | guided, watched),
    ):
        assert set(loss.terms) == parts | beside | {"total", "logit_real", "logit_fake"}
        assert all(loss.terms[name] != 0 for name in parts)
        torch.testing.assert_close(sum(loss.terms[name] for name in parts), loss.total.detach(), **EXACT)
        assert torch.equal(loss.terms["total"], loss.total)
        assert loss.total.requires_grad and not any(value.requires_grad for value in loss.terms.values())


def test_the_scaled_gradient_reaches_the_fake_and_transport_and_guidance_go_around_the_scale() -> None:
    # The generator's output is a leaf, so the whole gradient of the loss can be read there.
    batch, leaf = batch_of(8), normal(8, *SHAPE, name="leaf").requires_grad_()
    guidance = PlainGuidance(weight=0.4, low=0.0, high=1.0)
    discriminator = SmallDiscriminator()

    def gradient(target: float | None, **changes: object) -> Tensor:
        scale = GradientScaleConfig(target=target) if target else None
        objective = game(gradient_scale=scale, **changes)
        total = generator_loss(objective, batch, generator=lambda *given: leaf, discriminator=discriminator).total
        return torch.autograd.grad(total, leaf)[0]

    def by_hand(weight: float) -> Tensor:
        x_s, s, t = source_of(batch)
        transport = weight * (leaf - x_s).square().mean()
        judged = guidance_loss(guidance, networks().frozen["classifier"], leaf, t, batch.y, draws_of(8))
        return torch.autograd.grad(transport + judged, leaf)[0]

    zero = torch.zeros(8)
    real = discriminator(batch.x, zero, batch.y).detach()
    adversarial = torch.nn.functional.softplus(real - discriminator(leaf, zero, batch.y)).mean()
    (plain,) = torch.autograd.grad(adversarial, leaf)
    normalised = plain / (math.sqrt(0.1 * plain.numel()) * plain.norm() + 1e-8)  # phi's first update

    around = {"transport_weight": Constant(value=0.7), "guidance": guidance}
    torch.testing.assert_close(gradient(1.0, **around), normalised + by_hand(0.7), **EXACT)
    torch.testing.assert_close(gradient(2.0, **around), 2 * normalised + by_hand(0.7), **EXACT)
    torch.testing.assert_close(gradient(None, **around), plain + by_hand(0.7), **EXACT)


def test_augmentation_is_for_the_discriminators_eyes_only() -> None:
    batch, seen = batch_of(8), []

    def discriminator(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(x)
        return mean_logit(x, t, y)

    augmentation = AugmentationConfig(probability=Constant(value=1.0))
    nets = {"generator": lambda x, s, t, y: x + 3, "discriminator": discriminator}
    guidance = PlainGuidance(weight=0.4, low=0.0, high=1.0)
    plain = generator_loss(game(guidance=guidance), batch, **nets).terms
    terms = generator_loss(game(guidance=guidance, augmentation=augmentation), batch, **nets).terms
    assert torch.equal(terms["transport"], plain["transport"])
    assert torch.equal(terms["guidance"], plain["guidance"])
    _, _, seen_real, seen_fake = seen  # D judges the real ones first
    assert (seen_real == 0).any() and torch.equal(seen_real == 0, seen_fake == 0)
    x_s, _, _ = source_of(batch)
    assert not torch.equal(seen_fake, x_s + 3)


def test_the_generator_learns_through_the_augmentation() -> None:
    batch, leaf, discriminator = batch_of(8), normal(8, *SHAPE, name="leaf").requires_grad_(), SmallDiscriminator()
    config = AugmentationConfig(probability=Constant(value=0.7))
    objective = game(augmentation=config, gradient_scale=None, transport_weight=Constant(value=0.0))
    total = generator_loss(objective, batch, generator=lambda *given: leaf, discriminator=discriminator).total
    augment = paired_augmentation(config, draws_of(8), SHAPE[1:], step=0)
    zero = torch.zeros(8)
    logits = discriminator(augment(leaf), zero, batch.y), discriminator(augment(batch.x), zero, batch.y)
    expected = torch.nn.functional.softplus(logits[1] - logits[0]).mean()
    (gradient,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0], **EXACT)
    assert (gradient == 0).any() and (gradient != 0).any()


def test_penalty_noise_comes_after_the_augmentation() -> None:
    seen = []

    def discriminator(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(x)
        return mean_logit(x, t, y)

    objective = game(
        penalty=PenaltyConfig(share=1.0, epsilon=0.5), augmentation=AugmentationConfig(probability=Constant(value=1.0))
    )
    discriminator_loss(objective, batch_of(4), discriminator=discriminator)
    real, fake, moved_real, moved_fake = seen[0].chunk(4)
    for name, clean, moved in (("r1 noise", real, moved_real), ("r2 noise", fake, moved_fake)):
        torch.testing.assert_close((moved - clean) / 0.5, draws_of(4).normal(name, SHAPE).double(), **EXACT)


def test_the_adversarial_gradient_that_is_watched_is_that_before_normalisation() -> None:
    """q of Eq. 23, whatever the normaliser makes of it, and with none."""
    batch = batch_of(8)
    found = [
        generator_loss(game(gradient_scale=scale), batch).terms["adversarial_gradient_square"]
        for scale in (None, GradientScaleConfig(), GradientScaleConfig(target=3.0))
    ]
    assert found[0] == found[1] == found[2] > 0
    objective = game(gradient_scale=GradientScaleConfig(decay=0.0))
    terms = generator_loss(objective, batch).terms
    torch.testing.assert_close(
        terms["adversarial_gradient_square"].double(), objective.state_dict()["gradient_scale.square_avg"], **EXACT
    )
