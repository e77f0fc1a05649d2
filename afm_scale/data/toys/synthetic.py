"""Random latents with labels or prompts, for trying a large recipe without a data set. There is nothing to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from ...core.conditions import Conditions, ConditionShape
from ...core.random import KeyedDraws, Positions
from ...core.ranges import Range
from ...core.types import Batch
from ..order import PositionedSource
from ..source import SourceConfig


@dataclass(frozen=True, kw_only=True)
class SyntheticPromptsConfig:
    """Random numbers in the place of embedded prompts, of lengths from one token to all of them."""

    length: Annotated[int, Range(1, 65_536)]  # tokens of the longest prompt
    width: Annotated[int, Range(1, 1_048_576)]  # numbers for each token
    pooled: Annotated[int, Range(0, 1_048_576)] = 0  # numbers for the whole prompt


@dataclass(frozen=True, kw_only=True)
class SyntheticLatentsConfig(SourceConfig):
    """Random numbers in the place of latents, to measure speed; the defaults are ImageNet's at 256 pixels."""

    draws_latents: ClassVar[bool] = True
    positioned: ClassVar[bool] = True

    kind: Literal["synthetic"] = "synthetic"
    shape: Annotated[tuple[int, int, int], Range(1, 65_536)] = (4, 32, 32)  # C, H, W
    num_classes: Annotated[int, Range(1, 10_000_000)] = 1000  # of the labels, or of different prompts
    text: SyntheticPromptsConfig | None = None  # a prompt for each class, all held in memory; null: labels alone

    @property
    def prompt_shape(self) -> ConditionShape | None:
        return None if self.text is None else ConditionShape(self.text.length, self.text.width, self.text.pooled)

    def prompts(self) -> Conditions | None:
        """One for each class, and the empty one, which has a single token."""
        if self.text is None:
            return None
        text, count = self.text, self.num_classes + 1
        draws = KeyedDraws("synthetic prompts", positions=Positions(0, 1, count))
        lengths = torch.arange(count) % text.length + 1
        lengths[-1] = 1
        mask = torch.arange(text.length) < lengths[:, None]
        embeddings = draws.normal("embeddings", (text.length, text.width)) * mask[..., None]
        return Conditions(embeddings, mask, draws.normal("pooled", (text.pooled + 1,))[:, : text.pooled])


_MOST_PROMPTS = 64  # that stand for those of other data: they are held in memory, and their contents mean nothing


def like(config: SourceConfig) -> SyntheticLatentsConfig:
    """Random samples in the place of others, as many and as large; `config` is a resolved one."""
    shape, count = config.prompt_shape, config.num_classes
    return SyntheticLatentsConfig(
        global_batch=config.global_batch, shape=config.shape,
        num_classes=count if shape is None else min(count, _MOST_PROMPTS),
        text=None if shape is None else SyntheticPromptsConfig(
            length=shape.length, width=shape.width, pooled=shape.pooled
        ),
    )


class SyntheticLatents(PositionedSource):
    """Standard normal latents and evenly likely labels, drawn from the seed and the stream position."""

    def __init__(
        self, config: SyntheticLatentsConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        super().__init__(global_batch=config.global_batch, rank=rank, world_size=world_size)
        self.shape = config.shape
        self.num_classes = config.num_classes
        self._seed = seed
        self._device = torch.device(device)
        prompts = config.prompts()
        self._prompts = None if prompts is None else prompts.to(self._device)

    def at(self, positions: Positions) -> Batch:
        draws = KeyedDraws("synthetic", self._seed, positions=positions, device=self._device)
        latents, y = draws.normal("latents", self.shape), draws.uniform("label", 0, self.num_classes).long()
        if self._prompts is None:
            return Batch(latents, y)
        rows = torch.arange(len(y), device=self._device)
        return Batch(latents, rows, self._prompts.rows(torch.cat((y, torch.full_like(y[:1], -1)))))
