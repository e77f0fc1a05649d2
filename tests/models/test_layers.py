from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from afm_scale.core.sinusoids import TimeEmbedding, sincos_positions
from afm_scale.models.layers import Attention, Mlp, PatchEmbed, TimestepEmbedder, initial_weights
from tests.models.small import awake

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
random = torch.Generator().manual_seed(7)
TOKENS = torch.randn(2, 5, 8, dtype=torch.float64, generator=random)


def attention_by_hand(attention: Attention, x: torch.Tensor, *, normalise: bool) -> torch.Tensor:
    """softmax(q k^T / sqrt(d / heads)) v, head by head, sample by sample."""
    width = x.shape[-1] // attention.num_heads
    out = torch.empty_like(x)
    for b in range(len(x)):
        q, k, v = (x[b] @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
        for head in range(attention.num_heads):
            mine = slice(head * width, (head + 1) * width)
            a, b_, c = q[:, mine], k[:, mine], v[:, mine]
            if normalise:
                a, b_ = (
                    (u - u.mean(-1, keepdim=True)) / torch.sqrt(u.var(-1, unbiased=False, keepdim=True) + 1e-6)
                    * norm.weight + norm.bias
                    for u, norm in ((a, attention.q_norm), (b_, attention.k_norm))
                )
            scores = torch.exp(a @ b_.T / math.sqrt(width))
            out[b, :, mine] = scores / scores.sum(-1, keepdim=True) @ c
    return out @ attention.proj.weight.T + attention.proj.bias


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_the_softmax_formula(qk_norm: bool) -> None:
    attention = awake(Attention(8, 2, qk_norm=qk_norm))
    expected = attention_by_hand(attention, TOKENS, normalise=qk_norm)
    torch.testing.assert_close(attention(TOKENS), expected, rtol=1e-10, atol=1e-12)


def test_qk_norm_makes_attention_blind_to_the_scale_of_queries_and_keys() -> None:
    attention = awake(Attention(8, 2, qk_norm=True))
    before = attention(TOKENS)
    with torch.no_grad():
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            parameter[:16] *= 1000
    torch.testing.assert_close(attention(TOKENS), before, rtol=0, atol=1e-4)  # eps 1e-6 is what is left


def test_the_mlp_is_the_tanh_approximation_of_gelu_between_two_linear_layers() -> None:
    mlp = awake(Mlp(8))
    hidden = TOKENS @ mlp.fc1.weight.T + mlp.fc1.bias
    gelu = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    assert hidden.shape[-1] == 4 * 8
    torch.testing.assert_close(mlp(TOKENS), gelu @ mlp.fc2.weight.T + mlp.fc2.bias, rtol=1e-12, atol=1e-12)


def test_patches_are_embedded_row_by_row_each_by_the_same_matrix() -> None:
    embed = awake(PatchEmbed(3, 2, 8))
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=random)
    matrix = embed.proj.weight.flatten(1)
    tokens = embed(x)
    assert tokens.shape == (2, 6, 8)
    for row in range(2):
        for column in range(3):
            patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            torch.testing.assert_close(tokens[:, 3 * row + column], patch @ matrix.T + embed.proj.bias)


def test_patches_are_embedded_to_the_same_bits_whether_the_weight_learns_or_not() -> None:
    embed = awake(PatchEmbed(1, 2, 8))
    x = torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=random)
    learning = embed(x)
    assert torch.equal(embed.requires_grad_(False)(x), learning)


def test_patches_are_embedded_as_by_a_convolution_gradients_included() -> None:
    embed = awake(PatchEmbed(3, 2, 8))
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=random, requires_grad=True)
    weight, bias = embed.proj.weight, embed.proj.bias
    convolved = F.conv2d(x, weight, bias, stride=2).flatten(2).transpose(1, 2)
    toward = torch.randn(convolved.shape, dtype=torch.float64, generator=random)
    wanted = torch.autograd.grad(convolved, (x, weight, bias), toward)
    tokens = embed(x)
    torch.testing.assert_close(tokens, convolved, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(tokens, (x, weight, bias), toward), wanted, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("case", ["afm_1nfe", "afm_any_v"])
def test_the_positional_embedding_is_the_published_table(case: str) -> None:
    published = load_file(GOLDEN / f"{case}.safetensors")["init.gen.pos_embed"]
    assert torch.equal(sincos_positions(16, 2, 2), published)


def test_positions_code_the_column_then_the_row_by_sines_then_cosines() -> None:
    table = sincos_positions(8, 3, 5)[0].view(3, 5, 8)
    for row in range(3):
        for column in range(5):
            expected = [f(p * w) for p in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
            assert table[row, column].tolist() == pytest.approx(expected, abs=1e-7)


def test_times_become_cosines_then_sines_of_a_thousand_times_in_float32() -> None:
    embedder = awake(TimestepEmbedder(8))
    t = torch.tensor([0.0, 0.3, 0.7123456, 1.0])
    seen: list[torch.Tensor] = []
    embedder.mlp[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    embedder(t)
    (sinusoids,) = seen
    assert sinusoids.dtype == torch.float64  # widened
    assert torch.equal(sinusoids, sinusoids.float().double())  # after float32 arithmetic
    for index in range(4):
        angles = [1000 * t[index].item() * 10_000 ** (-k / 128) for k in range(128)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        assert sinusoids[index].tolist() == pytest.approx(expected, abs=1e-3)  # float32 angles up to 1000
    assert sinusoids[0].tolist() == [1.0] * 128 + [0.0] * 128


@pytest.mark.parametrize(("embedding", "time", "spacing"), [
    ("sit", "1 - t", 128), ("diffusers", "1000 t", 127), ("plain", "t", 128),
])
def test_times_are_also_embedded_as_the_published_sit_and_diffusers_do(
    embedding: TimeEmbedding, time: str, spacing: int
) -> None:
    embedder = awake(TimestepEmbedder(8, embedding))
    t = torch.tensor([0.0, 0.3, 0.7123456, 1.0])
    seen: list[torch.Tensor] = []
    embedder.mlp[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    embedder(t)
    for index in range(4):
        told = {"1 - t": 1 - t[index].item(), "1000 t": 1000 * t[index].item(), "t": t[index].item()}[time]
        angles = [told * 10_000 ** (-k / spacing) for k in range(128)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        assert seen[0][index].tolist() == pytest.approx(expected, abs=1e-3 if time == "1000 t" else 1e-6)


def test_the_time_embedder_is_an_mlp_on_the_sinusoids() -> None:
    embedder = awake(TimestepEmbedder(8))
    first, _, second = embedder.mlp
    sinusoids = torch.cat((torch.ones(1, 128), torch.zeros(1, 128)), dim=1).double()
    hidden = sinusoids @ first.weight.T + first.bias
    expected = (hidden * torch.sigmoid(hidden)) @ second.weight.T + second.bias
    torch.testing.assert_close(embedder(torch.zeros(1)), expected, rtol=1e-12, atol=1e-12)


def test_linear_layers_start_uniform_within_glorots_bound_and_without_bias() -> None:
    weights = dict(initial_weights(Attention(64, 4, qk_norm=True), 0))
    bound = math.sqrt(6 / (64 + 3 * 64))
    assert 0.99 * bound < weights["qkv.weight"].abs().max() <= bound
    assert weights["qkv.weight"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not weights["qkv.bias"].any() and not weights["proj.bias"].any()
    assert (weights["q_norm.weight"] == 1).all() and not weights["q_norm.bias"].any()


def test_the_patch_projection_starts_as_a_flat_matrix_would() -> None:
    weights = dict(initial_weights(PatchEmbed(4, 2, 256), 0))
    bound = math.sqrt(6 / (4 * 2 * 2 + 256))
    assert 0.99 * bound < weights["proj.weight"].abs().max() <= bound
    assert not weights["proj.bias"].any()


def test_time_embedders_start_normal_with_deviation_0_02() -> None:
    weights = dict(initial_weights(TimestepEmbedder(64), 0))
    for name in ("mlp.0.weight", "mlp.2.weight"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.05), name
    assert not weights["mlp.0.bias"].any() and not weights["mlp.2.bias"].any()


def test_a_tensor_starts_by_its_name_and_context_alone() -> None:
    alone = dict(initial_weights(Mlp(8), 3, "generator"))
    pair = dict(initial_weights(nn.ModuleDict({"b": Mlp(8), "a": Mlp(8)}), 3, "generator"))
    reversed_pair = dict(initial_weights(nn.ModuleDict({"a": Mlp(8), "b": Mlp(8)}), 3, "generator"))
    assert all(torch.equal(pair[name], reversed_pair[name]) for name in pair)
    assert not torch.equal(pair["a.fc1.weight"], pair["b.fc1.weight"])
    assert not torch.equal(pair["a.fc1.weight"], alone["fc1.weight"])
    for other in ((4, "generator"), (3, "discriminator")):
        assert not torch.equal(dict(initial_weights(Mlp(8), *other))["fc1.weight"], alone["fc1.weight"])
