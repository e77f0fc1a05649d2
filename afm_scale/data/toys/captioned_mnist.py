"""Handwritten digits with captions in the place of classes (`captions.py`): the smallest data of images and text.

A caption is found among the embedded prompts by its text, so the prompts are those of any list of captions that has
every one of these images: all 90 do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from ...core.errors import ConfigError, DataError
from ...core.random import Positions
from ...core.types import Batch
from ..order import EpochOrder, PositionedSource
from ..prompted import PromptedConfig, PromptReader
from .captions import described
from .mnist import SHAPE, MnistConfig, Part, read_mnist


@dataclass(frozen=True, kw_only=True)
class CaptionedMnistConfig(PromptedConfig):
    """Digits of 28x28 pixels from a file of one's own, with a caption each: digit, slant and thickness."""

    positioned: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int, int]] = SHAPE
    kind: Literal["captioned_mnist"] = "captioned_mnist"
    file: Path | None = None  # must be given to train, as of `mnist`; null: what a recipe leaves to its user
    part: Part = "train"  # of every ten images eight train, one is to tune settings on, one to state figures of

    def fingerprint(self) -> dict[str, str]:
        return {**MnistConfig(global_batch=1, file=self.file).fingerprint(), **super().fingerprint()}

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        return MnistConfig.decoding(on_gpu=on_gpu)


class CaptionedMnistSource(PositionedSource):
    """The images of one part in the order of `mnist`, told the embedded caption of each."""

    shape = SHAPE

    def __init__(
        self, config: CaptionedMnistConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        """Raises ConfigError if no file is given, DataError if it cannot be used or a caption is not embedded."""
        super().__init__(global_batch=config.global_batch, rank=rank, world_size=world_size)
        if config.file is None:
            raise ConfigError(
                "data.file is null: data.kind 'captioned_mnist' reads a file of yours; give it with data.file=FILE.npz "
                "(images [N, 28, 28] uint8, labels [N])"
            )
        self.file, self.num_classes = config.file, config.num_classes
        self.texts = config.texts()  # what the classes are in words, for who measures samples
        self._reader = PromptReader(config, check=rank == 0, device=device)
        digits = read_mnist(config.file, config.part)
        number_of = {text: number for number, text in enumerate(self._reader.prompts.texts())}
        captions = [one.caption for one in described(config.file, digits.x, digits.y)]
        missing = sorted(set(captions) - number_of.keys())
        if missing:
            raise DataError(
                f"{config.embeddings} holds no prompt {missing[0]!r}, nor {len(missing) - 1} more captions of "
                f"{config.file}; embed all captions of digits (docs/text.md)"
            )
        self._x = digits.x.to(device)
        self._rows = torch.tensor([number_of[caption] for caption in captions])
        self._order = EpochOrder(len(captions), seed=seed)

    def at(self, positions: Positions) -> Batch:
        indices = self._order.indices(positions)
        conditions = self._reader.read(self._rows[indices].tolist())
        return self._reader.batch(self._x[indices.to(self._x.device)], conditions)

    def close(self) -> None:
        self._reader.close()
