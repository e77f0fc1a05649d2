from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from afm_scale.core.errors import ConfigError
from afm_scale.core.types import Role
from afm_scale.models.classifier import ClassifierConfig, DiTClassifier
from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from afm_scale.models.dit import Backbone, BackboneConfig, Block, FinalLayer
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.layers import initial_weights
from afm_scale.models.mlp import MLPConfig, MLPDiscriminator, MLPGenerator
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.ddp import DDPPlan
from afm_scale.parallel.launch import Ranks
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, at_start, awake

random = torch.Generator().manual_seed(3)

NETWORKS = {
    "one-step generator": lambda: DiTGenerator(GeneratorConfig(**SIZE, times="none"), SHAPE, NUM_CLASSES),
    "any-step generator": lambda: DiTGenerator(GeneratorConfig(**SIZE, times="both"), SHAPE, NUM_CLASSES),
    "deep generator": lambda: DiTGenerator(GeneratorConfig(**SIZE, times="none", repetitions=2), SHAPE, NUM_CLASSES),
    "normed generator": lambda: DiTGenerator(GeneratorConfig(**SIZE, times="none", qk_norm=True), SHAPE, NUM_CLASSES),
    "discriminator": lambda: DiTDiscriminator(DiscriminatorConfig(**SIZE, target_time=True), SHAPE, NUM_CLASSES),
    "classifier": lambda: DiTClassifier(ClassifierConfig(**SIZE, weights=None), SHAPE, NUM_CLASSES),
    "mlp generator": lambda: MLPGenerator(MLPConfig(width=8), (1, 1, 1), 1),
    "mlp discriminator": lambda: MLPDiscriminator(MLPConfig(width=8), (1, 1, 1), 1),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_initial_weights_fill_every_tensor_of_a_network_built_without_storage(kind: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[kind]()
    network.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(math.nan)
    plan = DDPPlan(Ranks(0, 0, 1, torch.device("cpu")), ParallelConfig(plan="ddp"))
    plan.initialise(network, initial_weights(network, 0, Role.GENERATOR.value))
    tensors = [*network.named_parameters(), *network.named_buffers()]
    assert [name for name, tensor in tensors if tensor.isnan().any()] == []


@pytest.mark.parametrize("kind", NETWORKS)
def test_initial_weights_have_the_names_and_shapes_of_the_state_and_are_float32(kind: str) -> None:
    network = NETWORKS[kind]()
    given = {name: (tuple(value.shape), value.dtype) for name, value in initial_weights(network, 0)}
    assert given == {name: (tuple(value.shape), torch.float32) for name, value in network.state_dict().items()}


def test_a_block_is_two_residual_branches_scaled_shifted_and_gated_by_the_condition() -> None:
    block = awake(Block(BackboneConfig(**SIZE)))
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=random)
    c = torch.randn(2, 16, dtype=torch.float64, generator=random)
    linear = block.adaLN_modulation[1]
    modulation = (c * torch.sigmoid(c)) @ linear.weight.T + linear.bias
    shift1, scale1, gate1, shift2, scale2, gate2 = (modulation[:, None, 16 * k : 16 * k + 16] for k in range(6))

    def normed(u: torch.Tensor) -> torch.Tensor:
        return (u - u.mean(-1, keepdim=True)) / torch.sqrt(u.var(-1, unbiased=False, keepdim=True) + 1e-6)

    middle = x + gate1 * block.attn(normed(x) * (1 + scale1) + shift1)
    expected = middle + gate2 * block.mlp(normed(middle) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, c), expected, rtol=1e-11, atol=1e-11)


def test_a_block_starts_as_the_identity() -> None:
    block = at_start(Block(BackboneConfig(**SIZE)))
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=random)
    assert torch.equal(block(x, torch.randn(2, 16, dtype=torch.float64, generator=random)), x)


def test_the_final_layer_shifts_then_scales_by_the_condition() -> None:
    layer = awake(FinalLayer(16, 12))
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=random)
    c = torch.randn(2, 16, dtype=torch.float64, generator=random)
    shift, scale = nn.functional.linear(nn.functional.silu(c), *layer.adaLN_modulation[1].parameters()).chunk(2, dim=1)
    normed = nn.functional.layer_norm(x, (16,), eps=1e-6)
    expected = layer.linear(normed * (1 + scale[:, None]) + shift[:, None])
    torch.testing.assert_close(layer(x, c), expected, rtol=1e-12, atol=1e-12)


def test_unpatchify_puts_every_patch_back_where_it_was_cut() -> None:
    backbone = Backbone(BackboneConfig(**SIZE), SHAPE)
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float64).view(2, *SHAPE)
    tokens = torch.stack(  # rows of patches, each written as (row in it, column in it, channel): the published order
        [x[:, :, i : i + 2, j : j + 2].permute(0, 2, 3, 1).flatten(1) for i in (0, 2) for j in (0, 2, 4)], dim=1
    )
    assert torch.equal(backbone.unpatchify(tokens), x)


def test_tokens_carry_their_position() -> None:
    backbone = awake(Backbone(BackboneConfig(**SIZE), SHAPE))
    tokens = backbone.tokens(torch.zeros(1, *SHAPE, dtype=torch.float64))
    torch.testing.assert_close(tokens, backbone.x_embedder.proj.bias + backbone.pos_embed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"num_heads": 3}, "multiple of num_heads 3"), ({"hidden_size": 18, "num_heads": 2}, "and of 4")],
)
def test_a_width_that_does_not_divide_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(**{**SIZE, **wrong})


@pytest.mark.parametrize("shape", [(3, 5, 6), (3, 4, 7)])
def test_samples_that_do_not_divide_into_patches_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=f"{shape[1]} x {shape[2]} do not divide into patches of 2"):
        Backbone(BackboneConfig(**SIZE), shape)
