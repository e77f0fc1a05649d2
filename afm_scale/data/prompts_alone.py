"""Prompts without images, for objectives that draw what they learn from themselves (`image_free`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from ..core.errors import ConfigError
from ..core.paths import OrName
from ..core.random import Positions
from ..core.ranges import Range
from ..core.types import Batch
from .order import EpochOrder, PositionedSource
from .prompted import PromptedConfig, PromptReader
from .source import Encoding


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(PromptedConfig):
    """A folder of embedded prompts, and what the samples are that are drawn for them: latents if `vae` is given."""

    positioned: ClassVar[bool] = True
    has_images: ClassVar[bool] = False
    kind: Literal["prompts"] = "prompts"
    shape: Annotated[tuple[int, int, int], Range(1, 65_536)]  # C, H, W of a sample
    vae: Annotated[str, OrName()] | None = None  # decodes samples: a folder, or the name it goes by; null: pixels
    scale: Annotated[float, Range(above=0, high=1e6)] | None = None  # of latents, by which they are divided before
    shift: Annotated[float, Range(-1e6, 1e6)] = 0.0  # of latents, which is added then

    def __post_init__(self) -> None:
        if (self.vae is None) != (self.scale is None):
            raise ConfigError(
                f"data.vae is {self.vae!r} and data.scale {self.scale}: samples that are latents have both, pixels "
                "have neither"
            )

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        return "read from the disk, nothing to decode"

    @property
    def draws_latents(self) -> bool:
        return self.vae is not None

    @property
    def encoding(self) -> Encoding | None:
        return None if self.vae is None else Encoding(self.vae, self.scale, self.shift)


class PromptsSource(PositionedSource):
    """Every text of the prompts' source once per epoch. x is NaN: an objective that looks at it ends the run."""

    def __init__(
        self, config: PromptsConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        """Raises ConfigError or DataError if the prompts do not fit the configuration."""
        super().__init__(global_batch=config.global_batch, rank=rank, world_size=world_size)
        self.shape, self.num_classes = config.shape, config.num_classes
        self._reader = PromptReader(config, check=rank == 0, device=device)
        self._rows = self._reader.prompts.rows
        self._order = EpochOrder(len(self._rows), seed=seed)
        self._device = torch.device(device)

    def at(self, positions: Positions) -> Batch:
        conditions = self._reader.read(self._rows[self._order.indices(positions)].tolist())
        return self._reader.batch(torch.full((positions.count, *self.shape), math.nan, device=self._device), conditions)

    def close(self) -> None:
        self._reader.close()
