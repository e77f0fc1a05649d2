from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.errors import ConfigError
from afm_scale.models.large.qwen_image import packed, unpacked
from afm_scale.models.layers import initial_weights
from afm_scale.parallel.recompute import Recompute, recompute
from tests.models.large.classes import qwen_image
from tests.models.large.small import CLASS, SETTINGS, SHAPE, described, network, on_meta, plain, samples


def test_an_interval_is_told_by_the_second_embedding_times_its_length() -> None:
    ours, (x, told) = network(), samples(1)
    t, r = torch.tensor([0.75]), torch.tensor([0.25])
    first = ours.transformer.time_text_embed
    wanted: list[Tensor] = []
    with torch.no_grad():
        found = ours(x, t, r, told)
        sinusoids = first.time_proj(r)
        wanted = first.timestep_embedder(first.time_proj(t)) + 0.5 * ours.second_time(sinusoids)
        transformer = plain(ours)
        transformer.time_text_embed.forward = lambda *_: wanted
        assert torch.equal(found, qwen_image(transformer, x, t, told))
    assert (found - ours(x, t, t, told)).abs().max() > 1e-4


def test_a_negative_time_is_another_time_and_is_told_without_an_interval() -> None:
    ours, (x, told), t = network(), samples(), torch.tensor([0.5, 0.75, 0.25])
    negative = ours(x, -t, -t, told)
    assert (negative - ours(x, t, t, told)).abs().flatten(1).max(1).values.min() > 1e-4
    for parameter in ours.second_time.parameters():
        parameter.data.fill_(7.0)
    assert torch.equal(negative, ours(x, -t, -t, told))


def test_what_pads_a_prompt_is_not_seen() -> None:
    ours, (x, told), t = network(), samples(), torch.full((3,), 0.5)
    moved = told._replace(embeddings=told.embeddings + 5 * ~told.mask[..., None])
    assert torch.equal(ours(x, t, t, told), ours(x, t, t, moved))
    other = told._replace(embeddings=told.embeddings + 5 * told.mask[..., None])
    assert (ours(x, t, t, told) - ours(x, t, t, other)).abs().max() > 1e-4


def test_packing_is_the_pipelines() -> None:
    x = torch.randn(2, 4, 6, 8)
    theirs = diffusers.QwenImagePipeline._pack_latents(x, *x.shape)
    assert torch.equal(packed(x), theirs) and torch.equal(unpacked(theirs, 3, 4), x)


def test_on_the_meta_device_it_takes_no_memory_and_its_tables_of_positions_are_computed() -> None:
    built = on_meta(described())
    assert all(tensor.is_meta for tensor in built.state_dict().values())
    theirs = getattr(diffusers, CLASS)(**SETTINGS)
    assert torch.equal(built.transformer.pos_embed.pos_freqs, theirs.pos_embed.pos_freqs)
    assert {name.removeprefix("transformer.") for name in built.state_dict() if name.startswith("transformer.")} == (
        theirs.state_dict().keys()
    )


def test_it_starts_the_same_however_often_it_is_built_and_with_the_velocity_zero() -> None:
    one, two = (dict(initial_weights(on_meta(described()), 0, "generator")) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = dict(initial_weights(on_meta(described()), 1, "generator"))
    name = "transformer.transformer_blocks.0.attn.to_q.weight"
    assert not torch.equal(one[name], other[name])
    x, told = samples()
    assert not network(moved=0)(x, torch.ones(3), torch.zeros(3), told).any()


def test_blocks_are_those_that_diffusers_names_and_large_layers_those_of_tokens() -> None:
    built = on_meta(described())
    assert built.shardable_blocks() == list(built.transformer.transformer_blocks)
    large = built.large_linears()
    assert len(large) == 2 * 12 and all(0 not in linear.weight.shape for linear in large)
    of_modulation = [block.img_mod[1] for block in built.shardable_blocks()]
    assert not set(large) & set(of_modulation)


def test_every_weight_takes_part_in_a_gradient() -> None:
    """Those of the last block's text have one of zeros: DDP waits for all of them."""
    ours, (x, told) = network(), samples()
    ours(x, torch.ones(3), torch.zeros(3), told).square().mean().backward()
    missing = [name for name, parameter in ours.named_parameters() if parameter.grad is None]
    assert not missing
    last = ours.transformer.transformer_blocks[-1]
    assert not last.txt_mlp.net[2].weight.grad.any() and last.img_mlp.net[2].weight.grad.any()


def gradients(built: nn.Module) -> list[Tensor]:
    x, told = samples()
    built(x, torch.tensor([0.9, 0.5, 0.7]), torch.zeros(3), told).square().mean().backward()
    return [parameter.grad for parameter in built.parameters()]


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_recomputed_blocks_have_the_same_gradients(kind) -> None:
    again = network()
    recompute(again, Recompute(kind=kind))
    assert all(torch.equal(one, two) for one, two in zip(gradients(network()), gradients(again), strict=True))


def test_passes_of_it_cannot_be_recomputed_as_one() -> None:
    with pytest.raises(ConfigError, match="per_repetition.*set parallel.recompute=full"):
        recompute(network(), Recompute(kind="per_repetition"))


def test_in_bf16_blocks_are_lowered_and_everything_else_is_not() -> None:
    ours, lowered, (x, told) = network(), network(), samples()
    lowered.compute_blocks_in(torch.bfloat16)
    seen: dict[str, torch.dtype] = {}
    block, last = lowered.shardable_blocks()
    block.attn.to_q.register_forward_hook(lambda _, inputs, out: seen.update(query=out.dtype, into=inputs[0].dtype))
    last.register_forward_hook(lambda _, inputs, out: seen.update(out=out[1].dtype))
    block.register_forward_pre_hook(
        lambda _, inputs, options: seen.update(block=options["hidden_states"].dtype), with_kwargs=True
    )
    t = torch.tensor([0.9, 0.5, 0.7])
    found, wanted = lowered(x, t, t / 2, told), ours(x, t, t / 2, told)
    low, full = torch.bfloat16, torch.float32
    assert seen == {"query": low, "into": low, "block": low, "out": full} and found.dtype == full
    error = ((found - wanted).square().mean() / wanted.square().mean()).sqrt()
    assert 1e-5 < error < 0.03
    assert all(one.dtype == full for one in gradients(lowered))


@pytest.mark.parametrize("changes, reason", [
    ({"class_name": "QwenImageTransformer2DModle"}, "no class of diffusers .* did you mean 'QwenImageTransformer2DMo"),
    ({"class_name": "os"}, "no class of diffusers"),
    ({"class_name": "__loader__"}, "no class of diffusers"),
    ({"class_name": "AutoencoderKL"}, "something else than a transformer"),
    ({"class_name": "QwenImagePipeline"}, "something else than a transformer"),
    ({"class_name": "CogView4Transformer2DModel"}, "nothing here says how it is called; .* the sign of its output"),
    ({"config": SETTINGS | {"num_layer": 2}}, "no setting 'num_layer'; did you mean 'num_layers'"),
    ({"config": SETTINGS | {"in_channels": 12}}, "in_channels 12 is not 2.2 times out_channels 4"),
    ({"config": SETTINGS | {"guidance_embeds": True}}, "guidance_embeds is true"),
    ({"config": SETTINGS | {"num_layers": "two"}}, "cannot be built so"),
    ({"config": SETTINGS | {"num_attention_heads": "two"}}, "cannot be built so"),
    ({"config": SETTINGS | {"axes_dims_rope": [3, 6, 7]}}, "cannot be built so .AssertionError"),
    ({"config": SETTINGS | {"axes_dims_rope": [4, 6, 4]}}, "come to 14, attention_head_dim is 16"),
    ({"config": SETTINGS | {"in_channels": 8, "out_channels": 2}}, "latents of 2 channels .* samples are 4 x 8 x 8"),
    ({"config": None}, "config and weights are both null"),
])
def test_a_network_that_cannot_be_is_refused_with_the_reason(changes, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        on_meta(described(**changes))


def test_samples_that_do_not_divide_into_tokens_are_refused() -> None:
    from afm_scale.models.large.network import DiffusersGenerator

    with pytest.raises(ConfigError, match="patches of 2 x 2, samples are 4 x 8 x 7"):
        DiffusersGenerator(described(), (*SHAPE[:2], 7), 3)
