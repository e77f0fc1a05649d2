"""Qwen-Image (diffusers' QwenImagePipeline): 20B weights, text and image side by side in every block.

The pipeline gives the class t = sigma in [0, 1] as it is (1000 t of its scheduler, divided by 1000), latents in patches
of 2 x 2, the channel of a token being (channel, row, column), and the image's size in tokens for rotary positions. It
answers noise - data, of which its Euler step takes sigma' - sigma. Shifts of the times belong to its scheduler: here
they are the objective's and the sampler's.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ...core.conditions import Conditions
from ...core.errors import ConfigError
from .adapter import Settings, Sizes

_PATCH = 2


class QwenImage:
    """`Adapter` of QwenImageTransformer2DModel."""

    class_name: ClassVar[str] = "QwenImageTransformer2DModel"
    time_module: ClassVar[str] = "time_text_embed"
    time_projection: ClassVar[str] = "time_text_embed.time_proj"
    time_embedder: ClassVar[str] = "time_text_embed.timestep_embedder"
    time_unit: ClassVar[float] = 1.0
    modulations: ClassVar[tuple[str, ...]] = ("img_mod.", "txt_mod.", "norm_out.linear")
    last: ClassVar[str] = "proj_out"
    positions: ClassVar[tuple[str, ...]] = ("image_rotary_emb",)
    script: ClassVar[str] = "qwen_image"

    def sizes(self, settings: Settings) -> Sizes:
        for name in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            if settings[name]:
                raise ConfigError(
                    f"{name} is true, with which the class edits images or was distilled with guidance; wanted the "
                    f"plain text-to-image transformer: {name}=false"
                )
        patch, channels = settings["patch_size"], settings["in_channels"]
        of_output = settings["out_channels"] or channels
        if patch != _PATCH or channels != patch**2 * of_output:
            raise ConfigError(
                f"in_channels {channels} is not {_PATCH}^2 times out_channels {of_output} (patch_size {patch}), so "
                "that its output is no velocity of its input; use in_channels=64 with out_channels=16 and patch_size=2"
            )
        rotary, width = sum(settings["axes_dims_rope"]), settings["attention_head_dim"]
        if rotary != width:
            raise ConfigError(
                f"axes_dims_rope {list(settings['axes_dims_rope'])} come to {rotary}, attention_head_dim is {width}; "
                "wanted rotary positions that fill a head"
            )
        return Sizes(
            channels=of_output, patch=patch, num_heads=settings["num_attention_heads"],
            hidden_size=settings["num_attention_heads"] * settings["attention_head_dim"],
            prompt_width=settings["joint_attention_dim"],
        )

    def velocity(self, transformer: nn.Module, x: Tensor, times: Tensor, told: Conditions) -> Tensor:
        rows, columns = x.shape[2] // _PATCH, x.shape[3] // _PATCH
        (out,) = transformer(
            hidden_states=packed(x), timestep=times, encoder_hidden_states=told.embeddings,
            encoder_hidden_states_mask=told.mask, img_shapes=[[(1, rows, columns)]], return_dict=False,
        )
        return unpacked(out, rows, columns)


def packed(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H/2 W/2, 4 C]."""
    patches = x.unflatten(3, (-1, _PATCH)).unflatten(2, (-1, _PATCH))  # [B, C, H/2, 2, W/2, 2]
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """[B, H/2 W/2, 4 C] -> [B, C, H, W]."""
    patches = tokens.unflatten(1, (rows, columns)).unflatten(3, (-1, _PATCH, _PATCH))  # [B, H/2, W/2, C, 2, 2]
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * rows, 2 * columns)
