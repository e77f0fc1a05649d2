"""The DiT generator of AFM: one-step, K-step, any-step, or deep by repeating its blocks (paper section 3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.ranges import Range
from ..core.sinusoids import TimeEmbedding
from .dit import Backbone, BackboneConfig, FinalLayer
from .layers import LabelEmbedder, TimestepEmbedder


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(BackboneConfig):
    """A diffusion transformer. `times`: which of (s, t) it is told; one-step models need none, fixed steps the source.

    `repetitions`: how often the stack of blocks is applied, hidden state carried: 28 blocks make 56 or 112 layers.
    """

    no_class_setting: ClassVar[str] = "null_class"
    kind: Literal["dit"] = "dit"
    times: Literal["none", "source", "both"]  # which of (s, t) the network is told
    repetitions: Annotated[int, Range(1, 1_000)] = 1  # how often the stack of blocks is applied
    time_embedding: TimeEmbedding = "dit"  # whose sinusoids: sit, diffusers for weights that are from there
    null_class: bool = False  # one more row for samples without a class (objective 'flow_matching' with class_dropout)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repetitions > 1 and self.times != "none":
            raise ConfigError(
                f"repetitions {self.repetitions} needs times 'none', found {self.times!r}: "
                "a deep generator is one-step, its time embedding tells the repetitions apart"
            )

    @property
    def takes_no_class(self) -> bool:
        return self.null_class


class DiTGenerator(Backbone):
    """G(x_s, s, t, y) -> [B, C, H, W]."""

    def __init__(self, config: GeneratorConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, shape)
        self.times = config.times
        self.repetitions = config.repetitions
        self.y_embedder = LabelEmbedder(num_classes, config.hidden_size, null_class=config.null_class)
        if config.times != "none" or config.repetitions > 1:
            self.t_embedder = TimestepEmbedder(config.hidden_size, config.time_embedding)
        if config.times == "both":
            self.t_tgt_embedder = TimestepEmbedder(config.hidden_size, config.time_embedding)
        self.final_layer = FinalLayer(config.hidden_size, config.patch_size**2 * shape[0])

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x [B, C, H, W], source and target times s, t [B] float32, y [B] int64 -> [B, C, H, W]."""
        label = self.y_embedder(y)  # [B, d]
        tokens = self.tokens(x)
        if self.repetitions > 1:
            for repetition in range(self.repetitions):
                time = torch.full_like(s, 1 - repetition / self.repetitions)
                tokens = self.run_blocks(tokens, label + self.t_embedder(time))
            return self.unpatchify(self.final_layer(tokens, label))
        condition = label
        if self.times != "none":
            condition = condition + self.t_embedder(s)
        if self.times == "both":
            condition = condition + self.t_tgt_embedder(t)
        return self.unpatchify(self.final_layer(self.run_blocks(tokens, condition), condition))
