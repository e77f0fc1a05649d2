"""A generator that is told the interval by a gate: a flow model at s = t, smooth beside it, and it knows a sign."""

from __future__ import annotations

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.flow.derivative import derivative
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, at_start, awake, inputs


def generator(times: str, **settings: object) -> DiTGenerator:
    return DiTGenerator(GeneratorConfig(**SIZE, times=times, **settings), SHAPE, NUM_CLASSES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("negative_times", [False, True])
def test_with_a_flow_models_weights_it_is_that_flow_where_source_and_target_are_one(
    dtype: torch.dtype, negative_times: bool
) -> None:
    flow = awake(generator("source")).to(dtype)
    network = awake(generator("gated", negative_times=negative_times)).to(dtype)  # whose own weights are all awake
    missing, surplus = network.load_state_dict(flow.state_dict(), strict=False)
    assert not surplus and {name.partition(".")[0] for name in missing} == {
        "interval_embedder", *(["sign_embedder"] * negative_times)
    }
    x, s, t, y = inputs()
    x = x.to(dtype)
    assert torch.equal(network(x, s, s, y), flow(x, s, s, y))
    assert not torch.allclose(network(x, s, t, y), flow(x, s, t, y))


def test_it_starts_as_that_flow_at_every_interval() -> None:
    flow = awake(generator("source"))
    network = at_start(generator("gated"))
    network.load_state_dict(flow.state_dict(), strict=False)
    x, s, t, y = inputs()
    assert torch.equal(network(x, s, t, y), flow(x, s, t, y))


def test_the_interval_is_added_times_its_length() -> None:
    network, (x, s, t, y) = awake(generator("gated")), inputs()
    told = network.y_embedder(y) + network.t_embedder(s) + (s - t).double()[:, None] * network.interval_embedder(s - t)
    tokens = network.x_embedder(x) + network.pos_embed
    for block in network.blocks:
        tokens = block(tokens, told)
    expected = network.unpatchify(network.final_layer(tokens, told))
    torch.testing.assert_close(network(x, s, t, y), expected, rtol=1e-12, atol=1e-12)


def test_negative_times_are_told_from_positive_ones_by_their_sign_alone() -> None:
    network, (x, s, t, y) = awake(generator("gated", negative_times=True)), inputs()
    assert not torch.allclose(network(x, -s, -s, y), network(x, s, s, y))
    with torch.no_grad():
        network.sign_embedder.vector.zero_()
    assert torch.equal(network(x, -s, -s, y), network(x, s, s, y))
    assert torch.equal(network(x, -s, -t, y), network(x, s, t, y))


def test_its_derivative_by_the_source_time_is_the_limit_of_differences() -> None:
    network, (x, s, t, y) = awake(generator("gated", time_embedding="plain")), inputs()
    s, t = s.double(), t.double()  # the plain sinusoids of float64 times are float64
    tangents = torch.ones_like(x), torch.ones_like(s), torch.zeros_like(t)
    value, along = derivative(lambda x, s, t: network(x, s, t, y), (x, s, t), tangents)
    step = 1e-4
    with torch.no_grad():
        torch.testing.assert_close(value, network(x, s, t, y), rtol=1e-11, atol=1e-11)
        difference = (network(x + step, s + step, t, y) - network(x - step, s - step, t, y)) / (2 * step)
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("times", ["none", "source", "both"])
def test_negative_times_are_for_a_gate_alone(times: str) -> None:
    with pytest.raises(ConfigError, match=f"negative_times needs times 'gated', found '{times}'"):
        generator(times, negative_times=True)
