"""Z-Image (diffusers' ZImagePipeline): one sequence of image and text, each refined by some blocks of its own before.

The pipeline gives the class 1 - t, so that its time grows towards the data, latents and prompts as lists of one a
sample, prompts without what pads them (lengths differ, and places of the image's tokens with them); the class cuts
latents into patches of 2 x 2 itself. The pipeline takes its output the other way round: it is data - noise.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.conditions import Conditions
from ...core.errors import ConfigError
from .adapter import Settings, Sizes

_PATCH = 2


class ZImage:
    """`Adapter` of ZImageTransformer2DModel."""

    class_name: ClassVar[str] = "ZImageTransformer2DModel"
    time_module: ClassVar[str] = "t_embedder"
    time_projection: ClassVar[str | None] = None
    time_embedder: ClassVar[str] = "t_embedder"
    time_unit: ClassVar[float] = -1000.0  # t_scale, and 1 - t
    modulations: ClassVar[tuple[str, ...]] = ("adaLN_modulation",)
    last: ClassVar[str] = f"all_final_layer.{_PATCH}-1.linear"
    positions: ClassVar[tuple[str, ...]] = ()  # complex numbers
    script: ClassVar[str] = "z_image"

    def sizes(self, settings: Settings) -> Sizes:
        if settings["siglip_feat_dim"] is not None:
            raise ConfigError(
                f"siglip_feat_dim is {settings['siglip_feat_dim']}, with which the class is told pictures beside a "
                "prompt; wanted the plain text-to-image transformer: siglip_feat_dim=null"
            )
        patches = (list(settings["all_patch_size"]), list(settings["all_f_patch_size"]))
        if patches != ([_PATCH], [1]):
            raise ConfigError(
                f"all_patch_size and all_f_patch_size are {patches[0]} and {patches[1]}; wanted patches of 2 x 2 of "
                "one picture: [2] and [1]"
            )
        if settings["t_scale"] != -self.time_unit:
            raise ConfigError(f"t_scale is {settings['t_scale']}; wanted {-self.time_unit:g}, the class's own")
        return Sizes(
            channels=settings["in_channels"], patch=_PATCH, hidden_size=settings["dim"], num_heads=settings["n_heads"],
            prompt_width=settings["cap_feat_dim"], most_of_a_side=min(settings["axes_lens"][1:]),
        )

    def velocity(self, transformer: nn.Module, x: Tensor, times: Tensor, told: Conditions) -> Tensor:
        (out,) = transformer(list(x[:, :, None].unbind(0)), 1 - times, _without_padding(told), return_dict=False)
        return -torch.stack(out)[:, :, 0]


def _without_padding(told: Conditions) -> list[Tensor]:
    """Of each prompt its own tokens, [n, D]."""
    if told.mask.is_meta:  # where operations are counted; nothing is known of lengths there
        return list(told.embeddings.unbind(0))
    return list(told.embeddings[told.mask].split(told.mask.sum(dim=1).tolist()))
