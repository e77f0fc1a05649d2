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
from .layers import LabelEmbedder, SignEmbedder, TimestepEmbedder, zeros


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(BackboneConfig):
    """A diffusion transformer. `times`: which of (s, t) it is told; one-step models need none, fixed steps the source.

    gated: the source s by the embedder of a flow model, and the interval h = s - t by h E(h), which is nothing where
    s = t. So a flow model's weights are taken as they are, and its velocity is reproduced bit for bit at s = t.

    `repetitions`: how often the stack of blocks is applied, hidden state carried: 28 blocks make 56 or 112 layers.
    """

    no_class_setting: ClassVar[str] = "null_class"
    kind: Literal["dit"] = "dit"
    times: Literal["none", "source", "both", "gated"]  # which of (s, t) the network is told
    negative_times: bool = False  # told the sign of its times too, whose size is embedded (objective 'twin_flow')
    repetitions: Annotated[int, Range(1, 1_000)] = 1  # how often the stack of blocks is applied
    # whose sinusoids: sit, diffusers for weights that are from there; plain (of t, not of 1000 t) for derivatives by t
    time_embedding: TimeEmbedding = "dit"
    null_class: bool = False  # one more row for samples without a class (an objective's class_dropout)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repetitions > 1 and self.times != "none":
            raise ConfigError(
                f"repetitions {self.repetitions} needs times 'none', found {self.times!r}: "
                "a deep generator is one-step, its time embedding tells the repetitions apart"
            )
        if self.negative_times and self.times != "gated":
            raise ConfigError(f"negative_times needs times 'gated', found {self.times!r}: the others know no sign")

    @property
    def takes_no_class(self) -> bool:
        return self.null_class


class DiTGenerator(Backbone):
    """G(x_s, s, t, y) -> [B, C, H, W]."""

    def __init__(self, config: GeneratorConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, shape)
        self.times = config.times
        self.negative_times = config.negative_times
        self.repetitions = config.repetitions
        self.y_embedder = LabelEmbedder(num_classes, config.hidden_size, null_class=config.null_class)
        if config.times != "none" or config.repetitions > 1:
            self.t_embedder = TimestepEmbedder(config.hidden_size, config.time_embedding)
        if config.times == "both":
            self.t_tgt_embedder = TimestepEmbedder(config.hidden_size, config.time_embedding)
        if config.times == "gated":  # starts as a flow model at every interval
            self.interval_embedder = TimestepEmbedder(config.hidden_size, config.time_embedding, last=zeros)
        if config.negative_times:
            self.sign_embedder = SignEmbedder(config.hidden_size)
        self.final_layer = FinalLayer(config.hidden_size, config.patch_size**2 * shape[0])

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x [B, C, H, W], source and target times s, t [B] float32, y [B] int64 -> [B, C, H, W].

        With `negative_times` both may be negative: -1 <= s <= t <= 0 stands for the times -s and -t of another path.
        """
        label = self.y_embedder(y)  # [B, d]
        tokens = self.tokens(x)
        if self.repetitions > 1:
            for repetition in range(self.repetitions):
                time = torch.full_like(s, 1 - repetition / self.repetitions)
                tokens = self.run_blocks(tokens, label + self.t_embedder(time))
            return self.unpatchify(self.final_layer(tokens, label))
        condition = label
        if self.times == "gated":
            condition = condition + self.t_embedder(_size(s)) + self._interval(s, t)
        elif self.times != "none":
            condition = condition + self.t_embedder(s)
        if self.times == "both":
            condition = condition + self.t_tgt_embedder(t)
        return self.unpatchify(self.final_layer(self.run_blocks(tokens, condition), condition))

    def _interval(self, s: Tensor, t: Tensor) -> Tensor:
        """What the gate adds to a condition, [B, d]: exactly zero where s = t and neither is negative."""
        h = _size(s) - _size(t)
        told = self.interval_embedder(h)
        told = h.to(told.dtype)[:, None] * told
        return told + self.sign_embedder(s) if self.negative_times else told


def _size(t: Tensor) -> Tensor:
    """|t| with the derivative 1 at 0."""
    return torch.where(t < 0, -t, t)
