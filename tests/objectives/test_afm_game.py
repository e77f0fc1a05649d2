"""What a turn of the game does to the two players, and that splitting the batch changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.random import Positions
from afm_scale.core.schedules import Constant
from afm_scale.core.types import Networks, Role
from afm_scale.flow.times import AnyTimes
from afm_scale.objectives.afm import AdversarialFlow, PenaltyConfig
from afm_scale.objectives.gradient_scale import GradientScaleConfig
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.ddp import DDPPlan
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.optim import OptimizerConfig
from afm_scale.parallel.plan import Player
from tests.objectives.small import (
    CPU,
    SHAPE,
    SmallDiscriminator,
    SmallGenerator,
    batch_of,
    draws_of,
    game,
    networks,
    parts_of,
    scale_of,
)

LOSSES = {
    Role.GENERATOR: AdversarialFlow.generator_loss,
    Role.DISCRIMINATOR: AdversarialFlow.discriminator_loss,
}


def players() -> tuple[DDPPlan, dict[Role, Player], Networks]:
    plan = DDPPlan(Ranks(0, 0, 1, CPU), ParallelConfig(plan="ddp", precision="fp64"))
    optimizer = OptimizerConfig(learning_rate=Constant(value=1e-3))
    modules = {Role.GENERATOR: SmallGenerator(), Role.DISCRIMINATOR: SmallDiscriminator()}
    laid = {
        role: plan.player(role, module, [(name, w.clone()) for name, w in module.state_dict().items()], optimizer)
        for role, module in modules.items()
    }
    return plan, laid, networks(laid[Role.GENERATOR].network, laid[Role.DISCRIMINATOR].network)


def has_gradients(module: nn.Module) -> set[bool]:
    return {parameter.grad is not None for parameter in module.parameters()}


def weights_of(player: Player) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in player.module.parameters()]


def same(before: list[Tensor], after: list[Tensor]) -> set[bool]:
    return {torch.equal(a, b) for a, b in zip(before, after, strict=True)}


def test_the_discriminator_moves_first() -> None:
    assert game().turns(0) == game().turns(7) == ((Role.DISCRIMINATOR,), (Role.GENERATOR,))
    assert game(discriminator_steps=2).turns(0) == 2 * ((Role.DISCRIMINATOR,),) + ((Role.GENERATOR,),)


def test_in_each_turn_only_the_mover_gets_gradients_and_moves() -> None:
    plan, laid, nets = players()
    objective = game(penalty=PenaltyConfig())
    for step in range(2):
        for (role,) in objective.turns(step):
            mover, other = laid[role], laid[next(one for one in Role if one is not role)]
            before = weights_of(mover), weights_of(other)
            with plan.turn_of(mover, last=True):
                loss = LOSSES[role](objective, nets, batch_of(8), draws_of(8, step, role.value), step)
                plan.backward(mover, loss.total)
            assert has_gradients(mover.module) == {True}
            assert has_gradients(other.module) == {False}
            plan.step(mover, step)
            assert same(before[0], weights_of(mover)) == {False}
            assert same(before[1], weights_of(other)) == {True}


@pytest.mark.parametrize("scale", [None, GradientScaleConfig()])
@pytest.mark.parametrize(("role", "sign"), [(Role.DISCRIMINATOR, 1), (Role.GENERATOR, -1)])
def test_a_step_of_the_discriminator_parts_real_from_fake_and_one_of_the_generator_joins_them(
    role: Role, sign: int, scale: GradientScaleConfig | None
) -> None:
    nets = networks()
    objective = game(transport_weight=Constant(value=0.0), centring_weight=0.0, gradient_scale=scale)
    mover = nets.generator if role is Role.GENERATOR else nets.discriminator

    def gap() -> Tensor:
        """D(real) - D(fake) for the samples and noise of the step."""
        terms = game().discriminator_loss(nets, batch_of(8), draws_of(8), step=0).terms
        return terms["logit_real"] - terms["logit_fake"]

    before = gap()
    loss = LOSSES[role](objective, nets, batch_of(8), draws_of(8), 0)
    gradients = torch.autograd.grad(loss.total, tuple(mover.parameters()))
    length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert length > 1e-3
    with torch.no_grad():
        for parameter, gradient in zip(mover.parameters(), gradients, strict=True):
            parameter -= 1e-3 * gradient / length
    assert sign * (gap() - before) > 1e-4


def test_the_generators_turn_leaves_no_gradient_on_the_discriminator_even_where_it_could() -> None:
    nets = networks()  # every parameter requires grad: nothing but the loss itself protects D
    game().generator_loss(nets, batch_of(8), draws_of(8), step=0).total.backward()
    assert has_gradients(nets.discriminator) == {False}
    assert has_gradients(nets.generator) == {True}


def test_the_discriminators_turn_leaves_no_gradient_on_the_generator_even_where_it_could() -> None:
    nets = networks()
    game(penalty=PenaltyConfig()).discriminator_loss(nets, batch_of(8), draws_of(8), step=0).total.backward()
    assert has_gradients(nets.generator) == {False}
    assert has_gradients(nets.discriminator) == {True}


@pytest.mark.parametrize("share", [0.01, 0.25, 0.4, 0.7, 1.0])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 3), (2, 1), (3, 2), (2, 6), (12, 1)])
def test_the_discriminators_loss_does_not_depend_on_how_the_batch_is_split(
    world_size: int, accumulation: int, share: float
) -> None:
    nets, batch = networks(), batch_of(12)
    objective = game(times=AnyTimes(), penalty=PenaltyConfig(share=share, epsilon=0.1))
    parameters = tuple(nets.discriminator.parameters())
    whole = objective.discriminator_loss(nets, batch, draws_of(12, role="discriminator"), step=0)
    parts = [
        objective.discriminator_loss(nets, *part, step=0)
        for rank in parts_of(batch, world_size, accumulation, role="discriminator")
        for part in rank
    ]
    for name, value in whole.terms.items():
        mean = torch.stack([part.terms[name] for part in parts]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-12, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}")
    assert whole.terms["r1"] > 0 and whole.terms["r2"] > 0
    found = torch.autograd.grad(torch.stack([part.total for part in parts]).mean(), parameters)
    for ours, theirs in zip(found, torch.autograd.grad(whole.total, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("total", "share", "expected"), [(12, 0.01, 1), (12, 0.25, 3), (12, 0.3, 4), (10, 1.0, 10)])
def test_the_penalty_is_the_mean_over_the_first_share_of_the_global_batch(
    total: int, share: float, expected: int
) -> None:
    batch = batch_of(total)
    slope = torch.linspace(-1, 1, batch.x[0].numel(), dtype=torch.float64)
    nets = networks(discriminator=lambda x, t, y: x.flatten(1) @ slope)
    objective = game(penalty=PenaltyConfig(weight=1.0, share=share, epsilon=0.1))
    r1 = objective.discriminator_loss(nets, batch, draws_of(total), step=0).terms["r1"]
    along = draws_of(total).normal("r1 noise", SHAPE).double().flatten(1) @ slope
    torch.testing.assert_close(r1, along[:expected].square().mean(), rtol=1e-10, atol=0)


def test_clean_and_moved_logits_both_learn_from_the_penalty() -> None:
    # For a linear D the penalty is (e b)^2, so its gradient knows nothing of the samples.
    batch = batch_of(8)
    slope = torch.linspace(-1, 1, batch.x[0].numel(), dtype=torch.float64, requires_grad=True)
    nets = networks(discriminator=lambda x, t, y: x.flatten(1) @ slope)
    with_penalty, without = (
        game(penalty=PenaltyConfig(weight=weight, share=1.0, epsilon=0.1)).discriminator_loss(
            nets, batch, draws_of(8), step=0
        ).total
        for weight in (1.0, 0.0)
    )
    noises = [draws_of(8).normal(name, SHAPE).double().flatten(1) for name in ("r1 noise", "r2 noise")]
    expected = sum(2 * ((e @ slope)[:, None] * e).mean(0) for e in noises)
    (gradient,) = torch.autograd.grad(with_penalty - without, slope)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-10, atol=1e-11)


def test_a_microbatch_without_penalised_samples_has_none_to_pay_for() -> None:
    batch = batch_of(4)
    draws = draws_of(4)
    draws.positions = Positions(offset=8, stride=1, count=4)
    terms = game(penalty=PenaltyConfig(share=0.25)).discriminator_loss(networks(), batch, draws, step=0).terms
    assert terms["r1"] == terms["r2"] == 0


def test_only_an_objective_that_scales_gradients_has_something_to_save() -> None:
    assert game(gradient_scale=None).state_dict() == {}
    objective = game()
    assert scale_of(objective) == 0
    objective.discriminator_loss(networks(), batch_of(4), draws_of(4), step=0)
    assert scale_of(objective) == 0
    objective.generator_loss(networks(), batch_of(4), draws_of(4), step=0)
    assert scale_of(objective) > 0


def test_a_saved_average_of_squares_loaded_in_place_is_used_by_the_next_update() -> None:
    nets, first, resumed, fresh = networks(), game(), game(), game()
    first.generator_loss(nets, batch_of(4), draws_of(4), step=0)
    scale_of(resumed).copy_(scale_of(first))
    gradients = []
    for objective in (first, resumed, fresh):
        total = objective.generator_loss(nets, batch_of(4), draws_of(4, 1), step=1).total
        gradients.append(torch.autograd.grad(total, nets.generator.mix)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("scale", [None, GradientScaleConfig()])
def test_the_generators_terms_do_not_depend_on_microbatches(scale: GradientScaleConfig | None) -> None:
    nets, batch = networks(), batch_of(12)
    whole = game(gradient_scale=scale).generator_loss(nets, batch, draws_of(12), step=0)
    objective = game(gradient_scale=scale)
    (micros,) = parts_of(batch, 1, 3)
    for part, draws in micros:
        objective.survey(Role.GENERATOR, nets, part, draws, step=0)
    parts = [objective.generator_loss(nets, part, draws, step=0) for part, draws in micros]
    for name, value in whole.terms.items():
        mean = torch.stack([part.terms[name] for part in parts]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-12, atol=1e-14)
    parameters = tuple(nets.generator.parameters())
    found = torch.autograd.grad(sum(part.total for part in parts) / 3, parameters)
    for ours, theirs in zip(found, torch.autograd.grad(whole.total, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
