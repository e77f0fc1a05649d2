"""Sana (diffusers' SanaPipeline): linear attention among latents, which look at prompts across.

The pipeline gives the class 1000 t, latents [B, C, H, W] which it cuts into patches itself, and the tokens of a prompt
with their mask. It answers noise - data: its solver of flows takes x - t v for the data.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ...core.conditions import Conditions
from ...core.errors import ConfigError
from .adapter import Settings, Sizes

_UNIT = 1000.0


class Sana:
    """`Adapter` of SanaTransformer2DModel."""

    class_name: ClassVar[str] = "SanaTransformer2DModel"
    time_module: ClassVar[str] = "time_embed.emb"
    time_projection: ClassVar[str | None] = "time_embed.emb.time_proj"
    time_embedder: ClassVar[str] = "time_embed.emb.timestep_embedder"
    time_unit: ClassVar[float] = _UNIT
    modulations: ClassVar[tuple[str, ...]] = ("time_embed.linear",)
    last: ClassVar[str] = "proj_out"
    positions: ClassVar[tuple[str, ...]] = ()
    script: ClassVar[str] = "sana"

    def sizes(self, settings: Settings) -> Sizes:
        if settings["guidance_embeds"] or settings["timestep_scale"] != 1:
            raise ConfigError(
                f"guidance_embeds is {str(settings['guidance_embeds']).lower()} and timestep_scale is "
                f"{settings['timestep_scale']}, with which the class was distilled (Sana-Sprint) and is told other "
                "times; wanted the plain text-to-image transformer: guidance_embeds=false, timestep_scale=1"
            )
        channels, out_channels = settings["in_channels"], settings["out_channels"]
        if out_channels not in (None, channels):
            raise ConfigError(
                f"out_channels {out_channels} is not in_channels {channels}, so that its output is no velocity of its "
                "input; use as many of both"
            )
        hidden_size = settings["num_attention_heads"] * settings["attention_head_dim"]
        across = settings["cross_attention_dim"]
        if across != hidden_size:
            raise ConfigError(
                f"cross_attention_dim {across} is not num_attention_heads times attention_head_dim, {hidden_size}, the "
                "width that prompts are projected to; use the same"
            )
        return Sizes(
            channels=channels, patch=settings["patch_size"], hidden_size=hidden_size,
            num_heads=settings["num_attention_heads"], prompt_width=settings["caption_channels"],
        )

    def velocity(self, transformer: nn.Module, x: Tensor, times: Tensor, told: Conditions) -> Tensor:
        (out,) = transformer(
            x, encoder_hidden_states=told.embeddings, timestep=_UNIT * times,
            encoder_attention_mask=told.mask.to(x.dtype), return_dict=False,
        )
        return out
