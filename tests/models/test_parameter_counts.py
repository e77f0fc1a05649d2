"""The networks have as many parameters as the published ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from afm_scale.core.types import Role
from afm_scale.models.mlp import MLPConfig, MLPDiscriminator, MLPGenerator
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.run.networks import build_network, build_networks


def trainable(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def total(network: nn.Module) -> int:
    """With the fixed positions, which the published networks hold as a frozen parameter."""
    return sum(tensor.numel() for tensor in network.state_dict().values())


def networks(recipe: str, *overrides: str) -> tuple[nn.Module, nn.Module]:
    built = build_networks(load(RunConfig, recipe, overrides))
    return built[Role.GENERATOR], built[Role.DISCRIMINATOR]


@pytest.mark.parametrize("recipe, repetitions, generator, discriminator", [
    ("afm_1step_b2", 1, 129_514_768, 128_322_816),
    ("afm_1step_b2", 2, 130_302_736, 128_322_816),
    ("afm_1step_b2", 4, 130_302_736, 128_322_816),
    ("afm_1step_xl2", 1, 673_190_800, 670_518_144),
    ("afm_deep56", 2, 674_815_120, 670_518_144),
    ("afm_deep112", 4, 674_815_120, 670_518_144),
])
def test_trainable_parameters_are_those_counted_on_the_published_networks(
    recipe: str, repetitions: int, generator: int, discriminator: int
) -> None:
    built = networks(recipe, f"model.generator.repetitions={repetitions}")
    assert tuple(map(trainable, built)) == (generator, discriminator)


@pytest.mark.parametrize("recipe, generator, discriminator", [
    ("afm_1step_b2", 130, 129),
    ("afm_1step_m2", 306, 304),
    ("afm_1step_l2", 457, 455),
    ("afm_1step_xl2", 673, 671),
    ("afm_2step_xl2", 675, 672),
    ("afm_4step_xl2", 675, 672),
    ("afm_deep56", 675, 671),
    ("afm_deep112", 675, 671),
])
def test_totals_equal_the_published_table_to_the_million(recipe: str, generator: int, discriminator: int) -> None:
    assert tuple(round(total(network) / 1e6) for network in networks(recipe)) == (generator, discriminator)


def test_the_any_step_generator_has_two_time_embedders() -> None:
    assert round(total(networks("afm_anystep_xl2")[0]) / 1e6, 2) == 676.73


def test_the_classifier_has_about_129_million() -> None:
    assert round(total(build_network(load(RunConfig, "afm_1step_b2_guided"), Role.CLASSIFIER)) / 1e6) == 129


def test_the_networks_of_the_1d_experiment_are_those_of_the_published_notebook() -> None:
    with torch.device("meta"):
        generator = MLPGenerator(MLPConfig(width=1024), (1, 1, 1), 1)
        discriminator = MLPDiscriminator(MLPConfig(width=1024), (1, 1, 1), 1)
    assert (trainable(generator), trainable(discriminator)) == (3_347_457, 3_281_921)
