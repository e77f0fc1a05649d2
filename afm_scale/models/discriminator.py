"""The DiT discriminator of AFM: the generator's backbone with a [CLS] token and a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ..core.conditions import Told
from ..core.ranges import Range
from ..core.sinusoids import TimeEmbedding
from .dit import Backbone, BackboneConfig
from .layers import DefaultLinear, LabelEmbedder, PooledEmbedder, TimestepEmbedder, small_normal


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(BackboneConfig):
    """A diffusion transformer that reads its answer off a token.

    `target_time`: it is told t. One-step models judge clean samples only and need it not.
    """

    kind: Literal["dit"] = "dit"
    target_time: bool  # whether it is told t: one-step models need it not
    time_embedding: TimeEmbedding = "dit"  # whose sinusoids: sit, diffusers for weights that are from there
    # numbers that the data's text encoder gives for a whole prompt, which it is told; null: it is told classes
    pooled_width: Annotated[int, Range(1, 1_048_576)] | None = None


def cls_head(hidden_size: int, num_out: int, *, bias: bool) -> nn.Sequential:
    """LayerNorm without weights and a linear layer, on token 0 (published name: final_layer.1)."""
    norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
    return nn.Sequential(norm, DefaultLinear(hidden_size, num_out, bias=bias))


def prepend(token: Tensor, tokens: Tensor) -> Tensor:
    """A learnt token [d] before [B, N, d]. It comes after the positions were added and has none of its own."""
    return torch.cat((token.expand(len(tokens), 1, -1), tokens), dim=1)


class DiTDiscriminator(Backbone):
    """D(x_t, t, y) -> logits [B]."""

    def __init__(self, config: DiscriminatorConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, shape)
        self.y_embedder = (
            LabelEmbedder(num_classes, config.hidden_size) if config.pooled_width is None
            else PooledEmbedder(config.pooled_width, config.hidden_size)
        )
        self.target_time = config.target_time
        if config.target_time:
            self.t_embedder = TimestepEmbedder(config.hidden_size, config.time_embedding)
        self.dis_embed = nn.Parameter(torch.empty(config.hidden_size))
        self.final_layer = cls_head(config.hidden_size, 1, bias=False)

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        if name == "dis_embed":
            return small_normal(tuple(self.dis_embed.shape), generator)
        return super().initial(name, generator)

    def forward(
        self, x: Tensor, t: Tensor, y: Told, precise: bool = False, order: Tensor | None = None, share: float = 1.0
    ) -> Tensor:
        """x [B, C, H, W], target time t [B] float32, y [B] int64 or B conditions -> [B]; `precise`: see `read_first`.

        With `order` [B, H, W] it looks at round(share N) of the N tokens alone, those of the least numbers, and [CLS].
        """
        condition = self.y_embedder(y)
        if self.target_time:
            condition = condition + self.t_embedder(t)
        tokens = self.tokens(x) if order is None else self._some(self.tokens(x), order, share)
        first = self.read_first(prepend(self.dis_embed, tokens), condition, precise)
        return self.final_layer(first).squeeze(-1).clone()  # a view as output could lose FSDP2's hooks

    def _some(self, tokens: Tensor, order: Tensor, share: float) -> Tensor:
        """[B, N, d] -> [B, round(share N), d], each with its position; a token's number is that of its first pixel."""
        of_token = order[:, :: self.patch_size, :: self.patch_size].flatten(1)
        kept = of_token.argsort(dim=1, stable=True)[:, : round(share * tokens.shape[1])]
        return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
