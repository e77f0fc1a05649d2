"""What holds of every class that has an adapter; more is asked of Qwen-Image's in the files beside this one."""

from __future__ import annotations

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.models.large.table import ADAPTERS
from afm_scale.models.layers import initial_weights
from afm_scale.parallel.recompute import Recompute, recompute
from tests.models.large.classes import CLASSES, network, on_meta, plain, samples
from tests.models.large.small import described
from tests.models.large.small import on_meta as built_on_meta

EACH = pytest.mark.parametrize("name", CLASSES)
TIMES = torch.tensor([0.25, 0.0, 1.0])


def test_no_class_has_an_adapter_without_being_asked_here() -> None:
    assert ADAPTERS.keys() == {one.class_name for one in CLASSES.values()}


@EACH
@pytest.mark.parametrize("times", ["gated", "source"])
def test_where_both_times_are_the_same_it_is_the_plain_class_bit_for_bit(name, times) -> None:
    ours, (x, told) = network(name, times=times), samples(name)
    theirs = CLASSES[name].velocity(plain(name, ours), x, TIMES, told)
    assert torch.equal(ours(x, TIMES, TIMES, told), theirs) and theirs.std() > 0.01


def test_a_class_that_was_not_distilled_is_told_no_guidance() -> None:
    settings = CLASSES["flux"].settings | {"guidance_embeds": False}
    ours, (x, told) = network("flux", config=settings), samples("flux")
    theirs = CLASSES["flux"].velocity(plain("flux", ours, guidance_embeds=False), x, TIMES, told)
    assert torch.equal(ours(x, TIMES, TIMES, told), theirs)


@EACH
@torch.no_grad()
def test_an_interval_is_told_by_its_length_and_a_negative_time_is_another_time(name) -> None:
    ours, (x, told) = network(name), samples(name, 1)
    t, r = torch.tensor([0.75]), torch.tensor([0.25])
    at_t, negative = ours(x, t, t, told), ours(x, -t, -t, told)
    assert (negative - at_t).abs().max() > 1e-4
    embedded: list[torch.Tensor] = []
    module = ours.transformer.get_submodule(ADAPTERS[CLASSES[name].class_name].time_module)
    forward = module.forward
    module.forward = lambda *inputs, **options: embedded.append(forward(*inputs, **options)) or embedded[-1]
    ours.second_time.register_forward_hook(lambda _, inputs, out: embedded.append(out))
    ours(x, t, t, told), ours(x, t, r, told)
    of_t, alone, of_r, together = embedded[1], embedded[1], embedded[2], embedded[3]
    assert torch.allclose(together, alone + 0.5 * of_r, rtol=0, atol=1e-6) and torch.equal(of_t, alone)
    for parameter in ours.second_time.parameters():
        parameter.fill_(7.0)
    assert torch.equal(negative, ours(x, -t, -t, told)) and torch.equal(at_t, ours(x, t, t, told))


@EACH
@torch.no_grad()
def test_what_pads_a_prompt_is_seen_where_the_pipeline_shows_it(name) -> None:
    ours, (x, told) = network(name), samples(name)
    moved = told._replace(embeddings=told.embeddings + 5 * ~told.mask[..., None])
    same = torch.equal(ours(x, TIMES, TIMES, told), ours(x, TIMES, TIMES, moved))
    assert same == CLASSES[name].masked


@EACH
def test_every_weight_gets_a_gradient_and_recomputed_blocks_give_the_same(name) -> None:
    (x, told), found = samples(name), []
    for kind in ("none", "full"):
        ours = network(name)
        recompute(ours, Recompute(kind=kind))
        ours(x, torch.tensor([0.9, 0.5, 0.7]), torch.zeros(3), told).square().mean().backward()
        found.append({name: parameter.grad for name, parameter in ours.named_parameters()})
    once, again = found
    assert not [name for name, gradient in once.items() if gradient is None or not gradient.isfinite().all()]
    assert all(torch.equal(once[name], again[name]) for name in once)


@EACH
@torch.no_grad()
def test_in_bf16_it_is_the_network_but_for_rounding(name) -> None:
    ours, lowered, (x, told) = network(name), network(name), samples(name)
    lowered.compute_blocks_in(torch.bfloat16)
    found, wanted = lowered(x, TIMES, TIMES / 2, told), ours(x, TIMES, TIMES / 2, told)
    error = ((found - wanted).square().mean() / wanted.square().mean()).sqrt()
    assert found.dtype == torch.float32 and 1e-5 < error < 0.02


@EACH
def test_on_the_meta_device_it_is_as_large_as_the_plain_class_and_can_be_called(name) -> None:
    built, (x, told) = on_meta(name), samples(name)
    names = {name.removeprefix("transformer.") for name in built.state_dict() if name.startswith("transformer.")}
    assert names == plain(name, network(name)).state_dict().keys()
    assert all(tensor.is_meta for tensor in built.state_dict().values())
    times, told = torch.zeros(3, device="meta"), type(told)(*(value.to("meta") for value in told))
    assert built(x.to("meta"), times, times, told).shape == x.shape


@EACH
def test_blocks_stand_in_lists_and_layers_of_the_modulation_are_not_among_the_large_ones(name) -> None:
    built = on_meta(name)
    blocks = built.shardable_blocks()
    lists = {"qwen_image": 2, "sana": 2, "sd3": 2, "flux": 3, "z_image": 4}
    assert len(blocks) == lists[name] and len({id(block) for block in blocks}) == len(blocks)
    modulations = ADAPTERS[CLASSES[name].class_name].modulations
    inside = [path for path, _ in built.named_modules() if any(one in f"{path}." for one in modulations)]
    assert inside and built.large_linears()
    assert not {id(built.get_submodule(path)) for path in inside} & {id(linear) for linear in built.large_linears()}


@EACH
def test_from_scratch_it_begins_with_the_velocity_zero(name) -> None:
    (x, told), built = samples(name), on_meta(name).to_empty(device="cpu")
    for part, value in initial_weights(built, 0, "generator"):
        built.state_dict()[part].copy_(value)
    assert not built(x, torch.ones(3), torch.zeros(3), told).any()


def test_a_table_of_positions_that_checkpoints_keep_begins_as_the_class_computes_it() -> None:
    built = dict(initial_weights(on_meta("sd3"), 0, "generator"))
    theirs = plain("sd3", network("sd3", moved=0.0)).pos_embed.pos_embed
    computed = on_meta("sd3").transformer.pos_embed.tables["pos_embed"]
    assert torch.equal(built["transformer.pos_embed.pos_embed"], theirs) and torch.equal(computed, theirs)
    assert theirs.std() > 0.5


@pytest.mark.parametrize("name, changes, reason", [
    ("sd3", {"out_channels": 8}, "out_channels 8 is not in_channels 4"),
    ("sd3", {"caption_projection_dim": 12}, "caption_projection_dim 12 is not .* 16"),
    ("sd3", {"pos_embed_max_size": 3}, "positions of 3 tokens a side, samples of 8 x 8 are cut into 4 x 4"),
    ("sana", {"guidance_embeds": True}, "guidance_embeds is true .* distilled"),
    ("sana", {"timestep_scale": 0.001}, "timestep_scale is 0.001"),
    ("sana", {"out_channels": 8}, "out_channels 8 is not in_channels 4"),
    ("sana", {"cross_attention_dim": 12}, "cross_attention_dim 12 is not .* 16"),
    ("flux", {"out_channels": 4}, "in_channels 16, out_channels 4"),
    ("flux", {"in_channels": 18}, "in_channels 18"),
    ("flux", {"axes_dims_rope": [4, 6, 4]}, "come to 14, attention_head_dim is 16"),
    ("z_image", {"siglip_feat_dim": 8}, "siglip_feat_dim is 8"),
    ("z_image", {"all_patch_size": [2, 4], "all_f_patch_size": [1, 1]}, r"are \[2, 4\] and \[1, 1\]"),
    ("z_image", {"t_scale": 1.0}, "t_scale is 1.0; wanted 1000"),
    ("z_image", {"axes_lens": [64, 8, 3]}, "positions of 3 tokens a side"),
])
def test_a_network_that_its_adapter_does_not_know_is_refused_with_the_reason(name, changes, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        on_meta(name, **changes)


def test_a_class_without_an_adapter_is_refused_with_what_one_must_say() -> None:
    wanted = "where its time enters .* how latents are cut .* how prompts and their masks .* the sign of its output"
    with pytest.raises(ConfigError, match=f"known: .*SD3Transformer2DModel.*; .*{wanted}|{wanted}"):
        built_on_meta(described(class_name="PixArtTransformer2DModel", config={}))
