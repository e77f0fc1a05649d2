"""TwinFlow's quarters, what each is compared with, and what a gradient must not reach."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import ConfigError
from afm_scale.core.random import Positions
from afm_scale.core.schedules import AverageConfig
from afm_scale.core.types import NO_CLASS, PUBLISHED, Batch, Networks, Role, networks_of
from afm_scale.data.prompts_alone import PromptsConfig
from afm_scale.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from afm_scale.objectives.quarters import quarters_of
from afm_scale.objectives.twin_flow import TARGET, TwinFlow, TwinFlowConfig
from afm_scale.objectives.weighting import RobustWeight
from afm_scale.run.check import check_objective
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from tests.objectives.small import CPU, batch_of, draws_of, parts_of
from tests.objectives.test_intervals import Watched


def twin_flow(**changes: object) -> TwinFlow:
    settings = {"class_dropout": 0.0, "guidance_weight": 0.0, **changes}
    return TwinFlow(TwinFlowConfig(**settings), lambda value: value, CPU)


def networks(online: Watched, target: Watched | None = None) -> Networks:
    return networks_of({Role.GENERATOR: online}, {PUBLISHED: online, TARGET: target or Watched()}, {})


def test_the_quarters_have_their_times() -> None:
    found = twin_flow().compared(networks(Watched()), batch_of(4000), draws_of(4000))
    ones, near, far, adversarial = (slice(start, start + 1000) for start in range(0, 4000, 1000))
    assert (found.t[ones] == 1).all() and (found.r[ones] == 0).all()
    assert (found.t[near] - found.r[near] <= 0.05 * found.t[near]).all() and (found.r[near] <= found.t[near]).all()
    assert (found.r[far] / found.t[far]).mean().item() == pytest.approx(0.5, abs=4 / 12000**0.5)
    assert (found.t[adversarial] <= 0).all() and torch.equal(found.t[adversarial], found.r[adversarial])
    assert found.t[1000:3000].mean().item() == pytest.approx(0.5, abs=4 / 24000**0.5)


@pytest.mark.parametrize(("order", "guidance_weight"), [(1, 0.0), (2, 0.0), (2, 0.8)])
def test_adversarial_samples_enter_no_target_of_the_others(order: int, guidance_weight: float) -> None:
    online, target = Watched(), Watched()
    objective = twin_flow(order=order, guidance_weight=guidance_weight)
    objective.loss(Role.GENERATOR, networks(online, target), batch_of(16), draws_of(16), 0)
    jumps, guidance = [len(call[0]) for call in target.calls][-order:], target.calls[:-order]
    assert jumps == [12] * order and [len(call[0]) for call in guidance] == ([16] if guidance_weight else [])
    assert all((call[0] >= 0).all() and not call[3] for call in target.calls)
    # The network itself: its own samples, all with a gradient, and the twins on what one step makes.
    assert [(len(call[0]), call[3]) for call in online.calls] == [(4, False), (16, True), (8, False)]
    fake, _, twins = online.calls
    assert (fake[0] == 1).all() and (fake[1] == 0).all()
    assert torch.equal(twins[0][:4], -twins[0][4:]) and torch.equal(twins[0], twins[1]) and (twins[0][:4] >= 0).all()


def test_a_gradient_reaches_the_network_through_what_it_predicts_alone() -> None:
    online = Watched()
    found = twin_flow().compared(networks(online), batch_of(16), draws_of(16))
    constants = found.found.x, found.target, found.rectified, found.time_weight, found.found.velocity
    assert not any(value.requires_grad for value in constants)
    assert found.prediction.requires_grad and found.loss.requires_grad and found.rectification.requires_grad
    # With all of these held, the gradient is that of the squares of the prediction's distance to them.
    objective = twin_flow(robust=None)
    loss = objective.loss(Role.GENERATOR, networks(online), batch_of(16), draws_of(16), 0).total
    (by_objective,) = torch.autograd.grad(loss, online.network.mix)
    found = objective.compared(networks(online), batch_of(16), draws_of(16))
    squares = (found.prediction - found.target).square().flatten(1).mean(1)
    rectified = (found.prediction[:4] - found.rectified).square().flatten(1).mean(1)
    total = (found.time_weight * squares).mean() + 0.5 * rectified.mean()
    torch.testing.assert_close(torch.autograd.grad(total, online.network.mix)[0], by_objective)


def test_own_samples_are_made_by_one_step_and_are_data_for_the_twin() -> None:
    online, batch = Watched(), batch_of(8)
    found = twin_flow().compared(networks(online), batch, draws_of(8))
    own, z = (draws_of(8).normal(name, batch.x.shape[1:])[6:].double() for name in (
        "noise of own samples", "source noise"
    ))
    one = torch.ones(2, dtype=torch.float64)
    with torch.no_grad():
        fake = own - online.network(own, one, 0 * one, batch.y[6:])
    t = -found.t[6:].view(-1, 1, 1, 1)
    torch.testing.assert_close(found.found.x[6:], (1 - t) * fake + t * z)
    torch.testing.assert_close(found.target[6:], z - fake)
    assert (found.time_weight[6:] == 1).all()


def test_the_prediction_moves_towards_what_the_twin_at_positive_times_says() -> None:
    """The sign that makes its samples more like the data: by +(F(x', t') - F(x', -t')), clamped."""

    def signed(x: Tensor, t: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0, -0.3, 0.4).to(x.dtype).view(-1, 1, 1, 1).expand_as(x).clone()

    nets = networks_of({Role.GENERATOR: signed}, {PUBLISHED: signed, TARGET: signed}, {})
    for clamp, moved in ((1.0, 0.7), (0.2, 0.2)):
        found = twin_flow(clamp=clamp).compared(nets, batch_of(8), draws_of(8))
        torch.testing.assert_close(found.rectified, torch.full_like(found.rectified, 0.4 + moved))


def test_the_weight_of_time_falls_from_4_08_without_an_interval_to_1_over_the_whole() -> None:
    found = twin_flow().compared(networks(Watched()), batch_of(16), draws_of(16))
    assert found.time_weight[:4].tolist() == pytest.approx([1.0] * 4)
    length = found.found.t[4:12] - found.found.r[4:12]
    torch.testing.assert_close(found.time_weight[4:12], torch.tan((1 - length) * math.pi / 2.5) + 1)
    assert (1 < found.time_weight[4:12]).all() and (found.time_weight[4:12] < 4.08).all()


def test_the_robust_loss_is_about_the_root_of_the_error_and_weighs_as_a_constant() -> None:
    error = torch.tensor([0.01, 1.0, 1e-10], dtype=torch.float64, requires_grad=True)
    loss = RobustWeight()(error)
    assert loss[:2].tolist() == pytest.approx([0.1005, 1.005], rel=1e-3)
    assert loss[2].item() == pytest.approx(1e-7, rel=1e-3), "far below its scale it is a square"
    (slope,) = torch.autograd.grad(loss.sum(), error)
    torch.testing.assert_close(slope * error, loss)


def test_near_samples_alone_are_shown_without_their_class_and_are_not_guided() -> None:
    online = Watched()
    found = twin_flow(class_dropout=0.1, guidance_weight=0.5).compared(networks(online), batch_of(4000), draws_of(4000))
    _, _, y = online.learnt
    hidden = y == NO_CLASS
    assert not hidden[:1000].any() and not hidden[2000:].any()
    assert hidden.double().mean().item() == pytest.approx(0.1, abs=4 * (0.25 * 0.4 * 0.6 / 4000) ** 0.5)
    plain = twin_flow().compared(networks(Watched()), batch_of(4000), draws_of(4000)).found.velocity
    same = (found.found.velocity == plain).flatten(1).all(1)
    assert same[hidden].all() and same[:1000].all() and same[3000:].all()
    assert not same[1000:3000][~hidden[1000:3000]].any()


def test_the_first_updates_may_be_plain_flow_matching() -> None:
    online, batch = Watched(), batch_of(8)
    objective = twin_flow(warm_up_steps=3, class_dropout=0.1)
    flow = FlowMatching(FlowMatchingConfig(class_dropout=0.1), lambda value: value, CPU)
    for step in (0, 2):
        found = objective.loss(Role.GENERATOR, networks(online), batch, draws_of(8, step), step).total
        assert torch.equal(found, flow.loss(Role.GENERATOR, networks(online), batch, draws_of(8, step), step).total)
    terms = [objective.loss(Role.GENERATOR, networks(online), batch, draws_of(8, step), step).terms for step in (2, 3)]
    assert terms[0].keys() == terms[1].keys() and terms[0]["rectification"] == 0 < terms[1]["rectification"]


@pytest.mark.parametrize(("positions", "ends"), [
    (Positions(0, 1, 8), (2, 4, 6)), (Positions(0, 1, 11), (2, 4, 6)), (Positions(1, 2, 5), (1, 2, 3)),
])  # fmt: skip
def test_what_four_does_not_divide_is_adversarial(positions: Positions, ends: tuple[int, ...]) -> None:
    found = quarters_of(positions)
    assert found[:3] == ends and found.part == positions.stride / (positions.total // 4)


@pytest.mark.parametrize("count", [16, 24])
def test_the_mean_over_ranks_and_microbatches_is_the_loss_on_one_rank(count: int) -> None:
    objective = twin_flow(class_dropout=0.1, guidance_weight=0.5)
    nets, batch = networks(Watched(), Watched()), batch_of(count)
    whole = objective.loss(Role.GENERATOR, nets, batch, draws_of(count), 0)
    for world_size, accumulation in ((2, 1), (1, 4), (2, 2)):
        parts = [part for rank in parts_of(batch, world_size, accumulation) for part in rank]
        found = [objective.loss(Role.GENERATOR, nets, *part, step=0) for part in parts]
        for name in ("total", "rectification"):
            mean = torch.stack([loss.terms[name] for loss in found]).mean()
            torch.testing.assert_close(mean, whole.terms[name], rtol=1e-10, atol=1e-12)


def test_without_images_all_data_are_own_samples_and_what_lies_in_their_place_is_not_looked_at() -> None:
    online, batch = Watched(), batch_of(8)
    none = Batch(torch.full_like(batch.x, math.nan), batch.y)
    objective = twin_flow(image_free=True)
    found = objective.compared(networks(online), none, draws_of(8))
    own, z = (draws_of(8).normal(name, batch.x.shape[1:]).double() for name in (
        "noise of own samples", "source noise"
    ))
    one = torch.ones(8, dtype=torch.float64)
    with torch.no_grad():
        fake = own - online.network(own, one, 0 * one, batch.y)
    t = found.found.t.view(-1, 1, 1, 1)
    torch.testing.assert_close(found.found.x, (1 - t) * fake + t * z)
    torch.testing.assert_close(found.found.velocity, z - fake)
    total = objective.loss(Role.GENERATOR, networks(online), none, draws_of(8), 0).total
    assert total.isfinite()
    # With these samples in the place of images it is the same loss.
    wanted = twin_flow().loss(Role.GENERATOR, networks(online), Batch(fake, batch.y), draws_of(8), 0).total
    torch.testing.assert_close(total, wanted)


def test_a_target_that_stays_where_it_began_may_be_asked_without_a_class_that_no_sample_is_shown() -> None:
    assert AverageConfig(decay=1).decay_at(10**6) == 1
    described = load(RunConfig, "digits_twin_flow", ["run.folder=run"])
    for decay, words in ((1.0, None), (0.99, "objective.guidance_weight asks the generator about samples without a")):
        target = AverageConfig(decay=decay)
        config = TwinFlowConfig(image_free=True, class_dropout=0.0, guidance_weight=4.0, target=target)
        with pytest.raises(ConfigError, match=words) if words else nullcontext():
            check_objective(replace(described, objective=config), microbatch=8)


def test_flow_matching_before_the_rest_needs_images_and_so_do_other_objectives() -> None:
    described = load(RunConfig, "digits_twin_flow", ["run.folder=run"])
    with pytest.raises(ConfigError, match="objective.warm_up_steps 5 are of flow matching, which needs images"):
        config = TwinFlowConfig(image_free=True, warm_up_steps=5, class_dropout=0.0, guidance_weight=0.0)
        check_objective(replace(described, objective=config), microbatch=8)
    alone = PromptsConfig(global_batch=8, shape=(1, 8, 8), num_classes=3, length=5, width=4)
    with pytest.raises(ConfigError, match="'twin_flow' learns from images, and data of kind 'prompts' have none"):
        check_objective(replace(described, data=alone), microbatch=8)
