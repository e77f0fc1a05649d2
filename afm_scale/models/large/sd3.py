"""Stable Diffusion 3 and 3.5 (diffusers' StableDiffusion3Pipeline): text and image side by side in every block.

The pipeline gives the class 1000 t, latents [B, C, H, W] which it cuts into patches itself, the tokens of a prompt
without a mask (its padding is seen), and one vector for all of it. It answers noise - data, of which its Euler step
takes sigma' - sigma.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ...core.conditions import Conditions
from ...core.errors import ConfigError
from .adapter import Settings, Sizes

_UNIT = 1000.0


class SD3:
    """`Adapter` of SD3Transformer2DModel."""

    class_name: ClassVar[str] = "SD3Transformer2DModel"
    time_module: ClassVar[str] = "time_text_embed"
    time_projection: ClassVar[str | None] = "time_text_embed.time_proj"
    time_embedder: ClassVar[str] = "time_text_embed.timestep_embedder"
    time_unit: ClassVar[float] = _UNIT
    modulations: ClassVar[tuple[str, ...]] = ("norm1.linear", "norm1_context.linear", "norm_out.linear")
    last: ClassVar[str] = "proj_out"
    positions: ClassVar[tuple[str, ...]] = ()
    script: ClassVar[str] = "sd3"

    def sizes(self, settings: Settings) -> Sizes:
        channels, out_channels = settings["in_channels"], settings["out_channels"]
        if out_channels not in (None, channels):
            raise ConfigError(
                f"out_channels {out_channels} is not in_channels {channels}, so that its output is no velocity of its "
                "input; wanted the plain text-to-image transformer: as many of both"
            )
        heads = settings["num_attention_heads"]
        hidden_size = heads * settings["attention_head_dim"]
        if settings["caption_projection_dim"] != hidden_size:
            raise ConfigError(
                f"caption_projection_dim {settings['caption_projection_dim']} is not num_attention_heads times "
                f"attention_head_dim, {hidden_size}; text and image are of one width in its blocks"
            )
        return Sizes(
            channels=channels, patch=settings["patch_size"], hidden_size=hidden_size, num_heads=heads,
            prompt_width=settings["joint_attention_dim"], pooled_width=settings["pooled_projection_dim"],
            most_of_a_side=settings["pos_embed_max_size"],
        )

    def velocity(self, transformer: nn.Module, x: Tensor, times: Tensor, told: Conditions) -> Tensor:
        (out,) = transformer(
            hidden_states=x, timestep=_UNIT * times, encoder_hidden_states=told.embeddings,
            pooled_projections=told.pooled, return_dict=False,
        )
        return out
