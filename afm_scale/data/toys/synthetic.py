"""Random latents and labels, for trying a large recipe without a data set. There is nothing in them to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from ...core.random import KeyedDraws, Positions
from ...core.ranges import Range
from ...core.types import Batch
from ..order import PositionedSource
from ..source import SourceConfig


@dataclass(frozen=True, kw_only=True)
class SyntheticLatentsConfig(SourceConfig):
    """Random numbers in the place of latents, to measure speed; the defaults are ImageNet's at 256 pixels."""

    draws_latents: ClassVar[bool] = True
    positioned: ClassVar[bool] = True

    kind: Literal["synthetic"] = "synthetic"
    shape: Annotated[tuple[int, int, int], Range(1, 65_536)] = (4, 32, 32)  # C, H, W
    num_classes: Annotated[int, Range(1, 10_000_000)] = 1000  # of the labels


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

    def at(self, positions: Positions) -> Batch:
        draws = KeyedDraws("synthetic", self._seed, positions=positions, device=self._device)
        return Batch(draws.normal("latents", self.shape), draws.uniform("label", 0, self.num_classes).long())
