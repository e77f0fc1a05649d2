"""Flux (diffusers' FluxPipeline): blocks of text and image side by side, and then blocks of both as one.

The pipeline gives the class t in [0, 1], which it multiplies by 1000 itself; latents in patches of 2 x 2 as Qwen-Image
has them, each with its place; the tokens of a prompt without a mask (its padding is seen), all at place 0; and one
vector for all of the prompt. It answers noise - data, of which its Euler step takes sigma' - sigma.

A class with guidance_embeds was distilled to be told a scale of guidance (FLUX.1-dev). It is told the pipeline's own,
3.5, and so stays the network that the pipeline draws from; there is no other guidance in it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.conditions import Conditions
from ...core.errors import ConfigError
from .adapter import Settings, Sizes
from .qwen_image import packed, unpacked

_PATCH = 2
_GUIDANCE = 3.5


class Flux:
    """`Adapter` of FluxTransformer2DModel."""

    class_name: ClassVar[str] = "FluxTransformer2DModel"
    time_module: ClassVar[str] = "time_text_embed"
    time_projection: ClassVar[str | None] = "time_text_embed.time_proj"
    time_embedder: ClassVar[str] = "time_text_embed.timestep_embedder"
    time_unit: ClassVar[float] = 1000.0
    modulations: ClassVar[tuple[str, ...]] = ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")
    last: ClassVar[str] = "proj_out"
    positions: ClassVar[tuple[str, ...]] = ("image_rotary_emb",)
    script: ClassVar[str] = "flux"

    def sizes(self, settings: Settings) -> Sizes:
        channels, out_channels = settings["in_channels"], settings["out_channels"]
        if channels % _PATCH**2 or out_channels not in (None, channels) or settings["patch_size"] != 1:
            raise ConfigError(
                f"in_channels {channels}, out_channels {out_channels} and patch_size {settings['patch_size']} are not "
                "those of a velocity of latents in patches of 2 x 2; use in_channels=64 for 16 channels, "
                "out_channels=null and patch_size=1"
            )
        rotary, width = settings["axes_dims_rope"], settings["attention_head_dim"]
        if len(rotary) != 3 or sum(rotary) != width:
            raise ConfigError(
                f"axes_dims_rope {list(rotary)} come to {sum(rotary)}, attention_head_dim is {width}; wanted rotary "
                "positions of three axes that fill a head"
            )
        return Sizes(
            channels=channels // _PATCH**2, patch=_PATCH, num_heads=settings["num_attention_heads"],
            hidden_size=settings["num_attention_heads"] * width, prompt_width=settings["joint_attention_dim"],
            pooled_width=settings["pooled_projection_dim"],
        )

    def velocity(self, transformer: nn.Module, x: Tensor, times: Tensor, told: Conditions) -> Tensor:
        rows, columns = x.shape[2] // _PATCH, x.shape[3] // _PATCH
        guidance = x.new_full((len(x),), _GUIDANCE) if transformer.config.guidance_embeds else None
        (out,) = transformer(
            hidden_states=packed(x), timestep=times, guidance=guidance, encoder_hidden_states=told.embeddings,
            pooled_projections=told.pooled, txt_ids=x.new_zeros(told.embeddings.shape[1], 3),
            img_ids=_places(rows, columns, x), return_dict=False,
        )
        return unpacked(out, rows, columns)


def _places(rows: int, columns: int, like: Tensor) -> Tensor:
    """(0, row, column) of every token, [rows columns, 3]."""
    down = torch.arange(rows, dtype=like.dtype, device=like.device)[:, None].expand(rows, columns)
    across = torch.arange(columns, dtype=like.dtype, device=like.device).expand(rows, columns)
    return torch.stack((torch.zeros_like(down), down, across), dim=2).flatten(0, 1)
