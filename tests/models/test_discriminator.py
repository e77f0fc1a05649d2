from __future__ import annotations

import math

import pytest
import torch

from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from afm_scale.models.layers import initial_weights
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, at_start, awake, inputs


def discriminator(target_time: bool) -> DiTDiscriminator:
    return DiTDiscriminator(DiscriminatorConfig(**SIZE, target_time=target_time), SHAPE, NUM_CLASSES)


@pytest.mark.parametrize("target_time", [False, True])
def test_the_logit_is_one_constant_at_the_start_with_no_gradient_to_the_input(target_time: bool) -> None:
    network = at_start(discriminator(target_time))
    x, _, t, y = inputs()
    x.requires_grad_()
    logits = network(x, t, y)
    assert logits.shape == (4,)
    assert (logits == logits[0]).all() and logits[0] != 0
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert not gradient.any()


def test_the_gates_wake_at_once_because_they_have_a_gradient_at_the_start() -> None:
    network = at_start(discriminator(False))
    x, _, t, y = inputs()
    logits = network(x, t, y)
    (logits[0] - logits[1]).backward()  # real against fake
    assert network.blocks[0].adaLN_modulation[1].weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("target_time", [False, True])
def test_the_logit_is_read_from_a_learnt_token_without_a_position(target_time: bool) -> None:
    network = awake(discriminator(target_time))
    x, _, t, y = inputs()
    condition = network.y_embedder(y) + (network.t_embedder(t) if target_time else 0)
    positioned = network.x_embedder(x) + network.pos_embed
    tokens = torch.cat((network.dis_embed.expand(4, 1, -1), positioned), dim=1)  # 1 + 6 tokens
    for block in network.blocks:
        tokens = block(tokens, condition)
    first = tokens[:, 0]
    normed = (first - first.mean(1, keepdim=True)) / torch.sqrt(first.var(1, unbiased=False, keepdim=True) + 1e-6)
    expected = normed @ network.final_layer[1].weight[0]
    torch.testing.assert_close(network(x, t, y), expected, rtol=1e-11, atol=1e-12)


def test_the_head_has_no_bias_and_no_norm_weights() -> None:
    assert [name for name, _ in discriminator(False).named_parameters() if "final" in name] == ["final_layer.1.weight"]


def test_the_head_starts_as_pytorch_would_and_the_token_small() -> None:
    large = DiTDiscriminator(
        DiscriminatorConfig(patch_size=2, hidden_size=1024, depth=0, num_heads=4, target_time=False), SHAPE, NUM_CLASSES
    )
    weights = dict(initial_weights(large, 0, "discriminator"))
    head, bound = weights["final_layer.1.weight"], 1 / math.sqrt(1024)
    assert 0.98 * bound < head.abs().max() <= bound
    assert head.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert weights["dis_embed"].std().item() == pytest.approx(0.02, rel=0.1)
    assert weights["y_embedder.embedding_table.weight"].std().item() == pytest.approx(0.02, rel=0.1)
