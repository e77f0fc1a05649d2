"""Encoded images, and the embedded prompt of each: what text-to-image models are trained on.

Latents (tools/encode_latents.py) and prompts (tools/encode_prompts.py) are two folders, made in any order of the same
images with texts, or the prompts of the latents. That they belong together is seen by the texts' lengths and CRC-32,
which the index of the latents has and the description of the prompts is a sum of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.conditions import Conditions
from ..core.errors import DataError
from ..core.types import Batch
from .latents import LatentsConfig, LatentsSource
from .prompted import PromptedConfig, PromptReader
from .prompts import sum_of_texts


@dataclass(frozen=True, kw_only=True)
class TextLatentsConfig(PromptedConfig, LatentsConfig):
    """A folder of encoded latents with texts, and one of the prompts that those texts are."""

    kind: Literal["text_latents"] = "text_latents"
    mirror: bool = False  # every draw of the image or of its mirror image; a text that says left or right means one

    @property
    def num_labels(self) -> None:
        return None


class TextLatentsSource(LatentsSource):
    """`LatentsSource`, whose batches have the prompts of their samples. They are read ahead together."""

    def __init__(
        self, config: TextLatentsConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        """Raises ConfigError or DataError if either folder does not fit the configuration, or they do not the other."""
        super().__init__(config, seed=seed, rank=rank, world_size=world_size, device=device)
        self._prompts = PromptReader(config, check=rank == 0, device=device)
        content, index = self._shards.description.content, self._shards.index
        said = self._prompts.prompts.content
        if not content.texts:
            raise DataError(
                f"{config.folder} holds latents without texts; encode images that make_shards --texts has packed, or "
                "set data.kind=latents"
            )
        if said.num_texts != self._shards.num_samples:
            raise DataError(
                f"{config.folder} holds {self._shards.num_samples} latents, {config.embeddings} was made of "
                f"{said.num_texts} texts; make the prompts of these: tools/encode_prompts.py {config.folder} OUT"
            )
        if sum_of_texts(index.size[:, -1], index.crc32[:, -1]) != said.texts_sha256:
            raise DataError(
                f"the texts of {config.folder} are not those that {config.embeddings} was made of, or are in another "
                f"order; make the prompts of these latents: tools/encode_prompts.py {config.folder} OUT"
            )
        self._rows = self._prompts.prompts.rows

    def _told(self, samples: Sequence[int]) -> Conditions:
        found = self._prompts.read(self._rows[list(samples)].tolist())
        return Conditions(*(part.pin_memory() for part in found)) if self._device.type == "cuda" else found

    def _batch(self, x: Tensor, told: Conditions) -> Batch:
        return self._prompts.batch(x, told)

    def close(self) -> None:
        super().close()
        self._prompts.close()
