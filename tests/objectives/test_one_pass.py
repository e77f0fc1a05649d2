"""One backward of D for both players: the gradients are those of two turns on the same samples, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.errors import ConfigError
from afm_scale.core.random import Draws
from afm_scale.core.schedules import Constant
from afm_scale.core.types import Batch, Networks, Role, networks_of
from afm_scale.flow.guidance import FlowGuidance, PlainGuidance
from afm_scale.flow.path import Prediction
from afm_scale.flow.times import AnyTimes, GridTimes
from afm_scale.models.layers import initial_weights
from afm_scale.objectives.afm import AdversarialFlow, PenaltyConfig
from afm_scale.objectives.augment import AugmentationConfig
from afm_scale.objectives.gradient_scale import GradientScaleConfig
from afm_scale.objectives.one_pass import OnePassFlow, adversarial_flow
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.run.networks import build_networks
from tests.objectives.small import (
    CPU,
    batch_of,
    config_of,
    constant_output,
    draws_of,
    game,
    linear_classifier,
    mean_logit,
    networks,
    parts_of,
    scale_of,
)

Gradients = dict[str, Tensor]
AUGMENTED = {"augmentation": AugmentationConfig(probability=Constant(value=0.6))}
CASES: Mapping[str, Mapping[str, Any]] = {
    "one step": {},
    "without gradient normalisation": {"gradient_scale": None},
    "penalties on a share": {"penalty": PenaltyConfig(weight=0.3, share=0.4, epsilon=0.1)},
    "penalties on all": {"penalty": PenaltyConfig(weight=3.0, share=1.0)},
    "R1 alone": {"penalty": PenaltyConfig(terms="r1", share=0.5)},
    "R1 and R2 in turn": {"penalty": PenaltyConfig(terms="in_turn", share=0.5)},
    "four steps, velocity": {"times": GridTimes(steps=4), "prediction": Prediction.V, "penalty": PenaltyConfig()},
    "any step, augmented, guided": {
        "times": AnyTimes(), "prediction": Prediction.V, "penalty": PenaltyConfig(), **AUGMENTED,
        "guidance": PlainGuidance(weight=0.4, low=0.0, high=1.0), "gradient_scale": GradientScaleConfig(target=2.0),
    },
    "guided by a flow, augmented": {"guidance": FlowGuidance(weight=0.3, low=0.0, high=0.1), **AUGMENTED},
    "centred strongly": {"centring_weight": 5.0},
}
OF_DITS: Mapping[str, tuple[str, ...]] = {
    "deep": ("model.generator.repetitions=2",),
    "penalties by a precise call": ("objective.penalty.precise=true", "objective.penalty.share=0.4"),
    "some tokens": ("objective.token_share=0.5",),
    "all at once": (
        "model.generator.times=both", "model.discriminator.target_time=true", "objective.prediction=v",
        "objective.times={kind: any}", "objective.augmentation={probability: 0.5}", "objective.token_share=0.7",
        "objective.penalty.precise=true", "objective.penalty.terms=in_turn", "model.discriminator.qk_norm=true",
    ),
}
SMALL = ("patch_size=2", "hidden_size=16", "depth=2", "num_heads=2")
SIZES = [f"model.{player}.{size}" for player in ("generator", "discriminator") for size in SMALL]


def one_pass(reduce: Callable[[Tensor], Tensor] = lambda value: value, **changes: Any) -> OnePassFlow:
    return OnePassFlow(config_of(**changes, update="one_pass"), reduce, CPU)


def modules_of(nets: Networks) -> dict[str, nn.Module]:
    return {"generator": nets.generator, "discriminator": nets.discriminator}


def take_gradients(nets: Networks) -> Gradients:
    found = {
        f"{player}.{name}": parameter.grad for player, module in modules_of(nets).items()
        for name, parameter in module.named_parameters()
    }
    for module in modules_of(nets).values():
        module.zero_grad()
    return found


def learn(objective: AdversarialFlow, nets: Networks, batch: Batch, draws: Draws, step: int = 0) -> Gradients:
    """Both players' gradients on the same samples, by one turn or two."""
    for turn in objective.turns(step):
        for role in turn:
            for player, module in modules_of(nets).items():  # as a plan does it
                module.requires_grad_(Role(player) in turn)
            objective.loss(role, nets, batch, draws, step).total.backward()
    return take_gradients(nets)


def same(found: Gradients, wanted: Gradients) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 1e-6, f"{name}: nothing is compared"
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_two_turns_on_the_same_samples(case: str) -> None:
    nets, batch, two, one = networks(), batch_of(8), game(**CASES[case]), one_pass(**CASES[case])
    for step in range(3):
        wanted = learn(two, nets, batch, draws_of(8, step), step)
        same(learn(one, nets, batch, draws_of(8, step), step), wanted)
        if CASES[case].get("gradient_scale", True):
            torch.testing.assert_close(scale_of(one), scale_of(two), rtol=1e-10, atol=0)


def dits(overrides: tuple[str, ...]) -> tuple[RunConfig, Networks]:
    """Networks of a recipe with weights that are all at work, in float64."""
    config = load(RunConfig, "digits_afm", [*SIZES, "parallel.precision=fp64", *overrides])
    check(config, 1)
    players = {}
    for role, network in build_networks(config).items():
        network = players[role] = network.to_empty(device="cpu").double()
        generator = torch.Generator().manual_seed(0)
        network.load_state_dict({
            name: value + 0.05 * torch.randn(value.shape, generator=generator)
            for name, value in initial_weights(network, 0)
        })
    return config, networks_of(players, {"average": players[Role.GENERATOR]}, {"classifier": linear_classifier})


@pytest.mark.parametrize("case", OF_DITS)
def test_they_are_for_transformers_too(case: str) -> None:
    config, nets = dits(OF_DITS[case])
    batch = Batch(torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
                  torch.arange(6))
    two, one = (
        adversarial_flow(replace(config.objective, update=update), lambda value: value, CPU)
        for update in ("alternating", "one_pass")
    )
    for step in range(2):
        wanted = learn(two, nets, batch, draws_of(6, step), step)
        found = learn(one, nets, batch, draws_of(6, step), step)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)
        assert sum(bool(gradient.abs().max() > 1e-6) for gradient in wanted.values()) > 0.8 * len(wanted)


@pytest.mark.parametrize("case", ["any step, augmented, guided", "without gradient normalisation"])
def test_they_do_not_depend_on_microbatches(case: str) -> None:
    nets, batch, objective = networks(), batch_of(12), one_pass(**CASES[case])
    wanted = learn(one_pass(**CASES[case]), nets, batch, draws_of(12, role="both"))
    (micros,) = parts_of(batch, 1, 3, role="both")
    for role in (Role.DISCRIMINATOR, Role.GENERATOR):
        for micro, draws in micros:
            objective.survey(role, nets, micro, draws, 0)
        for micro, draws in micros:
            (objective.loss(role, nets, micro, draws, 0).total / 3).backward()
    same(take_gradients(nets), wanted)


class Calls:
    """A network that counts the samples it was shown in each call."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.found = network, []

    def __call__(self, x: Tensor, *given: Tensor) -> Tensor:
        self.found.append(len(x))
        return self.network(x, *given)


@pytest.mark.parametrize(("surveyed", "of_g"), [(False, [8]), (True, [8, 8])])
def test_each_network_is_called_once_and_g_once_more_with_microbatches(surveyed: bool, of_g: list[int]) -> None:
    nets, batch, objective = networks(), batch_of(8), one_pass(penalty=PenaltyConfig())
    nets = replace(nets, generator=Calls(nets.generator), discriminator=Calls(nets.discriminator))
    for role in (Role.DISCRIMINATOR, Role.GENERATOR):
        if surveyed:
            objective.survey(role, nets, batch, draws_of(8), 0)
        objective.loss(role, nets, batch, draws_of(8), 0).total.backward()
    assert (nets.generator.found, nets.discriminator.found) == (of_g, [20])


def test_a_logit_without_a_gradient_is_lifted_and_what_g_learns_is_right_and_d_learns_the_same() -> None:
    """Where D is sure of itself its loss is flat, in float32 exactly, and only G has something to learn."""
    slope = torch.linspace(-1, 1, 24).requires_grad_()
    x = torch.where(slope.detach() > 0, 40.0, -40.0).expand(4, 24).reshape(4, 2, 3, 4)
    batch = replace(batch_of(4), x=x.contiguous())
    leaf = (-x).clone().requires_grad_()
    nets = networks(generator=lambda *given: leaf, discriminator=lambda x, t, y: x.flatten(1) @ slope)
    settings = {"gradient_scale": None, "transport_weight": Constant(value=0.0), "centring_weight": 0.0}
    objective = one_pass(**settings)
    objective.discriminator_loss(nets, batch, draws_of(4), 0).total.backward()
    loss = objective.generator_loss(nets, batch, draws_of(4), 0)
    loss.total.backward()
    assert loss.terms["lifted_logits"] == 1
    torch.testing.assert_close(leaf.grad, (-slope.detach() / 4).expand(4, 24).reshape_as(leaf))
    assert 0 < slope.grad.abs().max() < 1e-15


def test_nothing_is_lifted_where_logits_have_gradients_and_their_scale_does_not_matter() -> None:
    batch, nets = batch_of(4), networks(generator=constant_output(torch.tensor([1.0, -1.0, 2.0, 0.0]).double()),
                                        discriminator=mean_logit)
    found = []
    for scale in (1.0, 1e-3):
        leaf = torch.zeros(4, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        nets = replace(nets, generator=lambda *given, leaf=leaf: leaf,
                       discriminator=lambda x, t, y: x.flatten(1).mean(1) * nn.Parameter(torch.ones(()).double()))
        objective = one_pass(transport_weight=Constant(value=0.0))
        (scale * objective.discriminator_loss(nets, batch, draws_of(4), 0).total).backward()
        loss = objective.generator_loss(nets, batch, draws_of(4), 0)
        loss.total.backward()
        assert loss.terms["lifted_logits"] == 0
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)


def test_both_move_in_the_one_turn_of_a_step_d_first() -> None:
    assert one_pass().turns(0) == one_pass().turns(3) == ((Role.DISCRIMINATOR, Role.GENERATOR),)
    kinds = [type(adversarial_flow(config_of(update=update), abs, CPU)) for update in ("alternating", "one_pass")]
    assert kinds == [AdversarialFlow, OnePassFlow]


@pytest.mark.parametrize(("recipe", "overrides", "words"), [
    ("digits_afm", ["objective.token_share=0.1"], "leaves the discriminator none of the 4 token.*at least 0.25"),
    ("mixture1d_afm", ["objective.token_share=0.5"], "one of kind 'mlp' sees a sample at once"),
    ("digits_afm", ["objective.token_share=0"], "objective.token_share"),
    ("digits_flow_matching", ["objective.update=one_pass"], "objective.update"),
    ("digits_flow_matching", ["objective.token_share=0.5"], "objective.token_share"),
    ("digits_afm", ["objective.update=one_pass", "objective.discriminator_steps=2"], "moves both players at once"),
    ("digits_afm", ["objective.discriminator_steps=0"], "objective.discriminator_steps"),
    ("digits_afm", ["objective.update=both"], "'alternating', 'one_pass'"),
    ("digits_afm", ["objective.penalty.terms=r2"], "'both', 'r1', 'in_turn'"),
])
def test_what_cannot_be_is_refused_with_the_reason(recipe: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(load(RunConfig, recipe, overrides), 1)


def test_the_update_cannot_change_while_a_run_goes_on() -> None:
    phases = "pilot={phases: [{name: a, until: {updates: 5}}, {name: b, objective: {update: one_pass}}]}"
    with pytest.raises(ConfigError, match="objective.update cannot change while a run goes on"):
        check(load(RunConfig, "digits_afm", [phases]), 1)
