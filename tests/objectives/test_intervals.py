"""What MeanFlow and alpha-Flow do with a batch: which samples have a length, whose class is hidden, what they weigh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import ConfigError
from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.typed import build
from afm_scale.core.types import NO_CLASS, PUBLISHED, Networks, Role, networks_of
from afm_scale.flow.mean_velocity import MixedVelocity
from afm_scale.objectives.alpha_flow import AlphaFlow, AlphaFlowConfig
from afm_scale.objectives.curriculum import ConstantAlpha, SigmoidAlpha
from afm_scale.objectives.intervals import IntervalRegression
from afm_scale.objectives.mean_flow import MeanFlow, MeanFlowConfig
from afm_scale.objectives.weighting import AdaptiveWeight
from tests.objectives.small import CPU, SmallGenerator, batch_of, draws_of, parts_of

PLAIN = AdaptiveWeight(power=0.0)


class Watched:
    """A smooth generator that keeps what it was asked, and whether a gradient was wanted."""

    def __init__(self) -> None:
        self.network = SmallGenerator()
        self.calls: list[tuple[Tensor, Tensor, Tensor, bool]] = []

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor) -> Tensor:
        self.calls.append((t, r, y, torch.is_grad_enabled()))
        return self.network(x, t, r, y.clamp(min=0)) + 0.3 * (y == NO_CLASS).to(x.dtype).view(-1, 1, 1, 1)

    @property
    def nets(self) -> Networks:
        return networks_of({Role.GENERATOR: self}, {PUBLISHED: self}, {})

    @property
    def learnt(self) -> tuple[Tensor, Tensor, Tensor]:
        """(t, r, y) of the one call with a gradient."""
        ((t, r, y, _),) = [call for call in self.calls if call[3]]
        return t, r, y


def mean_flow(**changes: object) -> MeanFlow:
    return MeanFlow(MeanFlowConfig(**{"class_dropout": 0.0, **changes}), lambda value: value, CPU)


def alpha_flow(alpha: float, **changes: object) -> AlphaFlow:
    settings = {"class_dropout": 0.0, "alpha": ConstantAlpha(value=alpha), **changes}
    return AlphaFlow(AlphaFlowConfig(**settings), lambda value: value, CPU)


@pytest.mark.parametrize("objective", [mean_flow, lambda **changes: alpha_flow(0.3, **changes)])
def test_without_lengths_it_is_plain_flow_matching_by_one_call(objective: object) -> None:
    watched, batch = Watched(), batch_of(6)
    loss = objective(flow_matching_share=1.0, weight=PLAIN).loss(Role.GENERATOR, watched.nets, batch, draws_of(6), 0)
    assert len(watched.calls) == 1
    t, r, y = watched.learnt
    assert torch.equal(t, r) and t.dtype == torch.float64
    z = draws_of(6).normal("source noise", batch.x.shape[1:]).double()
    time = t.view(-1, 1, 1, 1)
    u = watched.network((1 - time) * batch.x + time * z, t, t, y)
    torch.testing.assert_close(loss.total, (u - (z - batch.x)).square().flatten(1).sum(1).mean())


def test_a_fixed_share_of_the_global_batch_has_no_length_the_first_ones_and_the_target_there_is_the_velocity() -> None:
    watched = Watched()
    found = mean_flow(flow_matching_share=0.75).compared(watched.nets, batch_of(8), draws_of(8), 0)
    t, r, _ = watched.learnt
    assert (t == r).tolist() == [True] * 6 + [False] * 2 and (r <= t).all()
    assert torch.equal(found.target[:6], found.velocity[:6])
    assert not torch.allclose(found.target[6:], found.velocity[6:])
    assert [len(call[0]) for call in watched.calls] == [2, 8], "the derivative is of those with a length alone"


def test_times_are_the_later_and_the_earlier_of_two_logit_normals() -> None:
    watched = Watched()
    mean_flow(flow_matching_share=0.0, derivative="central").compared(watched.nets, batch_of(4000), draws_of(4000), 0)
    t, r, _ = watched.learnt
    logits = torch.logit(torch.cat((t, r)))
    assert logits.mean().item() == pytest.approx(-0.4, abs=4 / 8000**0.5)
    assert logits.std().item() == pytest.approx(1.0, rel=4 / 16000**0.5)
    pair = torch.sigmoid((-0.4 + draws_of(4000).normal("times", (2,))).double()).float()
    assert torch.equal(t.float(), pair.amax(1)) and torch.equal(r.float(), pair.amin(1))


def test_classes_are_hidden_from_samples_without_a_length_alone_whose_velocity_is_not_mixed() -> None:
    watched, batch = Watched(), batch_of(4000)
    objective = mean_flow(class_dropout=0.1, guidance=MixedVelocity(omega=2.0), derivative="central")
    found = objective.compared(watched.nets, batch, draws_of(4000), 0)
    _, _, y = watched.learnt
    hidden = y == NO_CLASS
    assert not hidden[3000:].any() and torch.equal(y[~hidden], batch.y[~hidden])
    assert hidden.double().mean().item() == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 4000) ** 0.5)
    v = draws_of(4000).normal("source noise", batch.x.shape[1:]).double() - batch.x
    assert torch.equal(found.velocity[hidden], v[hidden])
    assert not (found.velocity == v).flatten(1).all(1)[~hidden].any()


@pytest.mark.parametrize(("omega", "kappa", "calls"), [(1.5, 0.0, [8, 2, 8]), (0.2, 0.92, [16, 2, 8])])
def test_guidance_is_one_call_for_one_or_two_velocities(omega: float, kappa: float, calls: list[int]) -> None:
    watched = Watched()
    objective = mean_flow(guidance=MixedVelocity(omega=omega, kappa=kappa))
    objective.compared(watched.nets, batch_of(8), draws_of(8), 0)
    assert [len(call[0]) for call in watched.calls] == calls


def test_the_improved_tangent_is_the_networks_own_velocity_which_guidance_has_asked_for_already() -> None:
    for guidance, calls in ((None, [2, 2, 8]), (MixedVelocity(omega=0.5, kappa=0.5), [16, 2, 8])):
        watched = Watched()
        found = mean_flow(tangent="predicted", guidance=guidance).compared(watched.nets, batch_of(8), draws_of(8), 0)
        assert [len(call[0]) for call in watched.calls] == calls
        plain = mean_flow(guidance=guidance).compared(watched.nets, batch_of(8), draws_of(8), 0)
        assert torch.equal(found.velocity, plain.velocity) and not torch.allclose(found.target[6:], plain.target[6:])


def test_no_gradient_passes_through_the_target_and_the_weights() -> None:
    for objective in (mean_flow(guidance=MixedVelocity(omega=0.5, kappa=0.5)), alpha_flow(0.3), alpha_flow(0.0)):
        watched = Watched()
        found = objective.compared(watched.nets, batch_of(8), draws_of(8), 0)
        assert not any(value.requires_grad for value in (found.velocity, found.target, found.weight))
        assert found.loss.requires_grad and sum(call[3] for call in watched.calls) == 1


def gradient(objective: IntervalRegression) -> Tensor:
    watched = Watched()
    objective.loss(Role.GENERATOR, watched.nets, batch_of(8), draws_of(8), 0).total.backward()
    return watched.network.mix.grad


def test_at_a_small_alpha_the_gradient_is_that_of_mean_flow() -> None:
    """Without adaptive weights, where intervals weigh 1 / alpha."""
    same = {"weight": PLAIN, "flow_matching_share": 0.0}
    limit = gradient(mean_flow(**same))
    assert torch.equal(gradient(alpha_flow(0.0, **same)), limit)
    errors = []
    for alpha in (1e-2, 1e-3, 1e-4):
        errors.append(((gradient(alpha_flow(alpha, **same, clamp=None)) - limit).norm() / limit.norm()).item())
    assert errors[0] < 0.05 and errors[1] < 0.15 * errors[0] and errors[2] < 0.15 * errors[1]


def test_central_differences_and_the_derivative_in_forward_mode_agree() -> None:
    limit = gradient(mean_flow(flow_matching_share=0.0))
    by_differences = gradient(mean_flow(flow_matching_share=0.0, derivative="central", difference=1e-3))
    assert ((by_differences - limit).norm() / limit.norm()).item() < 1e-3


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_adaptive_weight_is_of_the_error_as_it_is_reduced(reduction: str) -> None:
    weight = AdaptiveWeight(power=0.75, eps=0.02, reduction=reduction)
    found = mean_flow(weight=weight).compared(Watched().nets, batch_of(8), draws_of(8), 0)
    squares = (found.prediction - found.target).square().flatten(1)
    error = squares.sum(1) if reduction == "sum" else squares.mean(1)
    torch.testing.assert_close(found.loss, error / (error.detach() + 0.02) ** 0.75, rtol=1e-12, atol=0)


def test_alpha_flow_weighs_intervals_by_alpha_and_at_zero_as_mean_flow_and_clamps_targets() -> None:
    for alpha, factor in ((0.3, 0.3), (1.0, 1.0), (0.0, 1.0)):
        found = alpha_flow(alpha, clamp=0.05).compared(Watched().nets, batch_of(8), draws_of(8), 0)
        error = (found.prediction - found.target).square().flatten(1).mean(1).detach()
        expected = 1 / (error + 1e-3) * torch.tensor([1.0] * 4 + [factor] * 4, dtype=error.dtype)
        torch.testing.assert_close(found.weight, expected, rtol=1e-12, atol=0)
        largest = found.target.abs().flatten(1).amax(1)
        assert (largest[4:] <= 0.05).all() == (alpha > 0) and (largest[:4] > 0.05).all()


def test_the_terms_split_the_error_into_flow_matching_and_consistency() -> None:
    """Up to what does not depend on the network: E |u - target|^2 = E |u - v|^2 + E 2 (v - target) u + const."""
    found = mean_flow(flow_matching_share=0.0).compared(Watched().nets, batch_of(8), draws_of(8), 0)
    error = (found.prediction - found.target).square().flatten(1).mean(1)
    rest = (found.target.square() - found.velocity.square()).flatten(1).mean(1)
    torch.testing.assert_close(found.flow_matching + found.consistency + rest, error, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", [
    mean_flow(guidance=MixedVelocity(omega=0.5, kappa=0.5), class_dropout=0.2), alpha_flow(0.3, class_dropout=0.2),
], ids=["mean flow", "alpha flow"])
def test_the_mean_over_ranks_and_microbatches_is_the_loss_on_one_rank(objective: IntervalRegression) -> None:
    nets, batch = Watched().nets, batch_of(12)
    whole = objective.loss(Role.GENERATOR, nets, batch, draws_of(12), 0)
    for world_size, accumulation in ((2, 1), (1, 3), (2, 3), (4, 3)):  # the last: one sample each
        parts = [part for rank in parts_of(batch, world_size, accumulation) for part in rank]
        found = [objective.loss(Role.GENERATOR, nets, *part, step=0) for part in parts]
        for name in whole.terms:
            torch.testing.assert_close(torch.stack([loss.terms[name] for loss in found]).mean(), whole.terms[name])


def test_every_microbatch_makes_the_same_calls_of_the_network_whatever_samples_it_has() -> None:
    objective = mean_flow(flow_matching_share=0.75, guidance=MixedVelocity(omega=2.0))
    counts = set()
    for rank in parts_of(batch_of(8), 2, 4):
        for part in rank:
            watched = Watched()
            objective.loss(Role.GENERATOR, watched.nets, *part, step=0)
            counts.add(len(watched.calls))
    assert counts == {3}


def test_the_curriculum_is_cut_at_the_published_shares_of_its_way() -> None:
    steps = 100_000
    alpha = SigmoidAlpha().over(steps)
    values = torch.tensor([alpha(step) for step in range(0, steps, 10)])
    assert (values == 1).double().mean().item() == pytest.approx(0.2883, abs=2e-4)
    assert (values > 0).double().mean().item() == pytest.approx(0.7117, abs=2e-4)
    assert (values.diff() <= 0).all() and alpha(steps // 2) == pytest.approx(0.5)
    late = SigmoidAlpha(begin=0.5, end=5 / 6, ends_in="floor").over(1_200_000)  # XL/2: from 600K to 1M of 1.2M
    assert late(715_200) == 1 and late(715_500) < 1
    assert late(884_600) > 0.005 and late(884_800) == late(1_199_999) == 0.005


@pytest.mark.parametrize(("changes", "message"), [
    ({"begin": 0.5, "end": 0.5}, "0.5 to 0.5 of the run does not end in it"),
    ({"begin": 0.0, "end": 400_000}, "0 to 400000 of the run does not end in it; begin and end are shares"),
])
def test_a_curriculum_that_is_longer_than_the_run_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(AlphaFlowConfig, {"alpha": {"kind": "sigmoid", **changes}})


def test_the_derivative_is_asked_for_by_those_alone_who_ever_take_one() -> None:
    assert MeanFlowConfig().differentiates_forward and AlphaFlowConfig().differentiates_forward
    assert not MeanFlowConfig(derivative="central").differentiates_forward
    assert not AlphaFlowConfig(alpha=SigmoidAlpha(ends_in="floor")).differentiates_forward
    assert not AlphaFlowConfig(alpha=ConstantAlpha(value=0.005)).differentiates_forward


def test_which_samples_have_a_length_does_not_depend_on_ranks() -> None:
    places = [Positions(rank, 2, 4) for rank in range(2)]
    seen = []
    for positions in places:
        watched = Watched()
        batch = batch_of(8).every(positions.offset, 2)
        draws = KeyedDraws(0, 0, "generator", positions=positions)
        mean_flow(flow_matching_share=0.75).compared(watched.nets, batch, draws, 0)
        t, r, _ = watched.learnt
        seen.append((t == r).tolist())
    assert seen == [[True, True, True, False]] * 2
