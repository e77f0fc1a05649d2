"""A small network of every class, and how its pipeline calls it: `from tests.models.large.classes import`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

from afm_scale.core.conditions import Conditions
from tests.models.large import small
from tests.models.large.small import SHAPE

LENGTH, WIDTH, POOLED = 5, 12, 6


class Small(NamedTuple):
    class_name: str
    settings: dict[str, Any]
    pooled: int
    velocity: Callable[[nn.Module, Tensor, Tensor, Conditions], Tensor]  # of the plain class, as its pipeline has it
    masked: bool  # whether what pads a prompt is not seen
    given: Callable[[Conditions], tuple[Any, ...]]  # to an export's script


def qwen_image(transformer: nn.Module, x: Tensor, t: Tensor, told: Conditions) -> Tensor:
    pipeline, (count, _, height, width) = diffusers.QwenImagePipeline, x.shape
    out = transformer(
        hidden_states=pipeline._pack_latents(x, *x.shape), timestep=1000 * t / 1000,
        encoder_hidden_states=told.embeddings, encoder_hidden_states_mask=told.mask,
        img_shapes=[[(1, height // 2, width // 2)]] * count, return_dict=False,
    )[0]
    return pipeline._unpack_latents(out, 8 * height, 8 * width, 8)[:, :, 0]


def _sd3(transformer: nn.Module, x: Tensor, t: Tensor, told: Conditions) -> Tensor:
    return transformer(
        hidden_states=x, timestep=1000 * t, encoder_hidden_states=told.embeddings, pooled_projections=told.pooled,
        joint_attention_kwargs=None, return_dict=False,
    )[0]


def _sana(transformer: nn.Module, x: Tensor, t: Tensor, told: Conditions) -> Tensor:
    return transformer(
        x, encoder_hidden_states=told.embeddings, encoder_attention_mask=told.mask.long(),
        timestep=1000 * t * transformer.config.timestep_scale, return_dict=False, attention_kwargs=None,
    )[0]


def _flux(transformer: nn.Module, x: Tensor, t: Tensor, told: Conditions) -> Tensor:
    pipeline, (count, channels, height, width) = diffusers.FluxPipeline, x.shape
    guidance = torch.full([1], 3.5).expand(count) if transformer.config.guidance_embeds else None
    out = transformer(
        hidden_states=pipeline._pack_latents(x, count, channels, height, width), timestep=1000 * t / 1000,
        guidance=guidance, pooled_projections=told.pooled, encoder_hidden_states=told.embeddings,
        txt_ids=torch.zeros(told.embeddings.shape[1], 3), joint_attention_kwargs={}, return_dict=False,
        img_ids=pipeline._prepare_latent_image_ids(count, height // 2, width // 2, x.device, x.dtype),
    )[0]
    return pipeline._unpack_latents(out, 8 * height, 8 * width, 8)


def _z_image(transformer: nn.Module, x: Tensor, t: Tensor, told: Conditions) -> Tensor:
    times = (1000 - 1000 * t) / 1000
    out = transformer(list(x.unsqueeze(2).unbind(dim=0)), times, _prompts(told), return_dict=False)[0]
    return -torch.stack([one.float() for one in out], dim=0).squeeze(2)


def _prompts(told: Conditions) -> list[Tensor]:
    return [one[mask] for one, mask in zip(told.embeddings, told.mask, strict=True)]


CLASSES = {
    "qwen_image": Small(
        small.CLASS, small.SETTINGS, 0, qwen_image, masked=True, given=lambda told: (told.embeddings, told.mask)
    ),
    "sd3": Small("SD3Transformer2DModel", {
        "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4,
        "joint_attention_dim": WIDTH, "caption_projection_dim": 16, "pooled_projection_dim": POOLED, "sample_size": 8,
        "pos_embed_max_size": 6, "dual_attention_layers": [0], "qk_norm": "rms_norm",
    }, POOLED, _sd3, masked=False, given=lambda told: (told.embeddings, told.pooled)),
    "sana": Small("SanaTransformer2DModel", {
        "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
        "caption_channels": WIDTH, "sample_size": 8, "patch_size": 2, "interpolation_scale": 1,
    }, 0, _sana, masked=True, given=lambda told: (told.embeddings, told.mask)),
    "flux": Small("FluxTransformer2DModel", {
        "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16,
        "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED, "axes_dims_rope": [4, 6, 6],
        "guidance_embeds": True,
    }, POOLED, _flux, masked=False, given=lambda told: (told.embeddings, told.pooled)),
    "z_image": Small("ZImageTransformer2DModel", {
        "n_layers": 2, "n_refiner_layers": 1, "dim": 32, "n_heads": 2, "n_kv_heads": 2, "in_channels": 4,
        "cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [64, 8, 8],
    }, 0, _z_image, masked=True, given=lambda told: (_prompts(told),)),
}


def network(name: str, **changes: Any) -> nn.Module:
    one = CLASSES[name]
    return small.network(class_name=one.class_name, **{"config": one.settings} | changes)


def on_meta(name: str, **changes: Any) -> nn.Module:
    """`changes`: of its settings."""
    one = CLASSES[name]
    return small.on_meta(small.described(class_name=one.class_name, config=one.settings | changes))


def plain(name: str, built: nn.Module, **changes: Any) -> nn.Module:
    """The class of diffusers itself, with the weights of ours."""
    one = CLASSES[name]
    transformer = getattr(diffusers, one.class_name)(**one.settings | changes)
    transformer.load_state_dict(built.transformer.state_dict())
    return transformer


def samples(name: str, count: int = 3) -> tuple[Tensor, Conditions]:
    random = torch.Generator().manual_seed(2)
    mask = torch.arange(LENGTH) < torch.tensor([[5], [2], [3], [1]])[:count]
    embeddings = torch.randn(count, LENGTH, WIDTH, generator=random) * mask[..., None]
    pooled = torch.randn(count, CLASSES[name].pooled, generator=random)
    return torch.randn(count, *SHAPE, generator=random), Conditions(embeddings, mask, pooled)
