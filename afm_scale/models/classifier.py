"""The time-conditioned DiT classifier that guides (paper section 4.1): p(y | x_t, t)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .discriminator import cls_head, prepend
from .dit import Backbone, BackboneConfig
from .layers import TimestepEmbedder, small_normal


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(BackboneConfig):
    """A diffusion transformer that tells classes.

    `weights`: what guides, read when training starts and frozen: a safetensors file with the published names, or a
    checkpoint (or a run's folder) of objective 'classification', whose average is taken. Null where it is trained.
    """

    kind: Literal["dit"] = "dit"
    weights: Path | None = None  # of the one that guides: a file, or a run's folder; null where it is trained


class DiTClassifier(Backbone):
    """C(x_t, t) -> class logits [B, num_classes]; like the discriminator, but told the time and not the label."""

    def __init__(self, config: ClassifierConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, shape)
        self.t_embedder = TimestepEmbedder(config.hidden_size)
        self.cls_embed = nn.Parameter(torch.empty(config.hidden_size))
        self.final_layer = cls_head(config.hidden_size, num_classes, bias=True)

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        if name == "cls_embed":
            return small_normal(tuple(self.cls_embed.shape), generator)
        return super().initial(name, generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, H, W], t [B] float32 -> [B, num_classes]."""
        return self.logits(self.features(x, t))

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """What the last linear layer sees: the learnt token after its LayerNorm, [B, d]."""
        condition = self.t_embedder(t)
        norm, _ = self.final_layer
        return norm(self.read_first(prepend(self.cls_embed, self.tokens(x)), condition))

    def logits(self, features: Tensor) -> Tensor:
        """[B, d] -> [B, num_classes]."""
        _, linear = self.final_layer
        return linear(features)
