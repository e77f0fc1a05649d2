from __future__ import annotations

import math

import torch
from torch import nn

from afm_scale.core.types import NO_CLASS
from afm_scale.models.layers import initial_weights
from afm_scale.models.mlp import MLPClassifier, MLPClassifierConfig, MLPConfig, MLPDiscriminator, MLPGenerator
from tests.models.small import awake

VALUES = torch.tensor([-1.5, 0.0, 0.31])
Y = torch.zeros(3, dtype=torch.int64)


def features(value: float) -> list[float]:
    """As published: sines, then cosines, of 100 value; the last of 32 frequencies is exactly 1 / 10000."""
    frequencies = [math.exp(-math.log(10_000) * index / 31) for index in range(32)]
    return [math.sin(100 * value * w) for w in frequencies] + [math.cos(100 * value * w) for w in frequencies]


def by_hand(network: nn.Module, *scalars: torch.Tensor, column: int | None = 0) -> torch.Tensor:
    rows = zip(*(scalar.tolist() for scalar in scalars), strict=True)
    hidden = torch.tensor([[f for value in row for f in features(value)] for row in rows], dtype=torch.float64)
    *inner, last = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    assert len(inner) == 4
    for layer in inner:
        hidden = nn.functional.silu(layer(hidden))
    return last(hidden) if column is None else last(hidden)[:, column]


def test_the_generator_sees_the_sample_and_both_times() -> None:
    network = awake(MLPGenerator(MLPConfig(width=8), (1, 1, 1), 1))
    s, t = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.0, 0.25, 0.125])
    output = network(VALUES.double().view(3, 1, 1, 1), s, t, Y)
    assert output.shape == (3, 1, 1, 1)
    torch.testing.assert_close(output.flatten(), by_hand(network, VALUES, s, t), rtol=1e-4, atol=1e-4)


def test_the_discriminator_sees_the_sample_and_its_time() -> None:
    network = awake(MLPDiscriminator(MLPConfig(width=8), (1, 1, 1), 1))
    t = torch.tensor([0.0, 0.25, 0.5])
    logits = network(VALUES.double().view(3, 1, 1, 1), t, Y)
    torch.testing.assert_close(logits, by_hand(network, VALUES, t), rtol=1e-4, atol=1e-4)


def test_the_published_width_has_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        networks = [kind(MLPConfig(width=1024), (1, 1, 1), 1) for kind in (MLPGenerator, MLPDiscriminator)]
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [3_347_457, 3_281_921]


def test_layers_start_as_pytorchs_own_biases_too() -> None:
    weights = dict(initial_weights(MLPGenerator(MLPConfig(width=256), (1, 1, 1), 1), 0))
    for name, num_in in (("layers.2.weight", 256), ("layers.2.bias", 256), ("layers.0.weight", 192)):
        bound = 1 / math.sqrt(num_in)
        assert 0.95 * bound < weights[name].abs().max() <= bound, name


def test_a_conditional_network_takes_the_label_as_one_more_scalar() -> None:
    y, t = torch.tensor([4, 0, NO_CLASS]), torch.tensor([0.0, 0.25, 0.5])
    discriminator = awake(MLPDiscriminator(MLPConfig(width=8, conditional=True), (1, 1, 1), 5))
    logits = discriminator(VALUES.double().view(3, 1, 1, 1), t, y)
    torch.testing.assert_close(logits, by_hand(discriminator, VALUES, t, y.float()), rtol=1e-4, atol=1e-4)
    generator = awake(MLPGenerator(MLPConfig(width=8, conditional=True), (1, 1, 1), 5))
    output = generator(VALUES.double().view(3, 1, 1, 1), 2 * t, t, y)
    torch.testing.assert_close(output.flatten(), by_hand(generator, VALUES, 2 * t, t, y.float()), rtol=1e-4, atol=1e-4)


def test_every_number_of_a_sample_is_a_scalar_and_comes_out_in_its_place() -> None:
    network = awake(MLPGenerator(MLPConfig(width=8), (2, 1, 1), 1))
    x, t = torch.tensor([[0.3, -1.0], [0.3, 0.4], [2.0, 0.5]]), torch.zeros(3)
    output = network(x.double().view(3, 2, 1, 1), t + 1, t, Y)
    assert output.shape == (3, 2, 1, 1)
    expected = by_hand(network, x[:, 0], x[:, 1], t + 1, t, column=None)
    torch.testing.assert_close(output.flatten(1), expected, rtol=1e-4, atol=1e-4)


def test_the_classifier_sees_the_sample_and_its_time() -> None:
    network = awake(MLPClassifier(MLPClassifierConfig(width=8), (2, 1, 1), 4))
    x, t = torch.tensor([[0.3, -1.0], [0.3, 0.4], [2.0, 0.5]]), torch.tensor([0.0, 0.25, 0.5])
    logits = network(x.double().view(3, 2, 1, 1), t)
    assert logits.shape == (3, 4)
    torch.testing.assert_close(logits, by_hand(network, x[:, 0], x[:, 1], t, column=None), rtol=1e-4, atol=1e-4)
    features = network.features(x.double().view(3, 2, 1, 1), t)
    assert features.shape == (3, 8) and torch.equal(network.logits(features), logits)
