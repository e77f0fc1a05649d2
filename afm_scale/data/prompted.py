"""What data with prompts have in common: where the embeddings lie, what embedded them, and which prompts are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.conditions import Conditions, ConditionShape
from ..core.errors import ConfigError, DataError
from ..core.ranges import Range, Text
from ..core.types import Batch
from .prompts import Prompts, described_prompts
from .source import SourceConfig, filled

Config = TypeVar("Config", bound="PromptedConfig")
_MOST_SHOWN = 1000  # prompts that samples are drawn for, where nobody says how many


@dataclass(frozen=True, kw_only=True)
class PromptedConfig(SourceConfig):
    """Where prompts lie, as tools/encode_prompts.py embeds them.

    What is left out of `num_classes`, `length`, `width`, `pooled` and `encoder`, `resolved` reads from the folder's
    dataset.json; what is given is compared with it when the prompts are read.
    """

    # a folder that tools/encode_prompts.py has made; must be given to train, null: what a recipe leaves to its user
    embeddings: Path | None = None
    # another such folder, by the same text encoder, of the prompts that samples are drawn for; null: the training's own
    shown: Path | None = None
    # of the prompts that samples are drawn for, the first ones; null: all, and at most 1,000 of the training's own
    num_classes: Annotated[int, Range(1, 10_000_000)] | None = None
    length: Annotated[int, Range(1, 65_536)] | None = None  # tokens that all prompts are padded to; null: as embedded
    width: Annotated[int, Range(1, 1_048_576)] | None = None  # numbers for each token; null: as embedded
    pooled: Annotated[int, Range(0, 1_048_576)] | None = None  # numbers for the whole prompt; null: as embedded
    # of what embedded them: SHA-256 in digits, by which those of another text encoder are refused; null: as embedded
    encoder: Annotated[str, Text(64, "[0-9a-f]{64}", "a SHA-256 in hexadecimal digits")] | None = None

    def resolved(self: Config) -> Config:
        chosen = self
        if self.embeddings is not None and None in (*self._told(), self.num_classes):
            description, content = described_prompts(self.embeddings)
            count = min(description.class_counts[0], _MOST_SHOWN)
            if self.shown is not None:
                count = described_prompts(self.shown)[0].class_counts[0]
            chosen = filled(
                self, num_classes=count, length=content.length, width=content.width, pooled=content.pooled,
                encoder=content.encoder.sha256(),
            )
        return super(PromptedConfig, chosen).resolved()

    def _told(self) -> tuple[Any, ...]:
        return self.length, self.width, self.pooled, self.encoder

    def fingerprint(self) -> Mapping[str, str]:
        """With which prompts they are, each once, and which of them each text is."""
        if self.embeddings is None:
            return super().fingerprint()
        description, content = described_prompts(self.embeddings)
        return {
            **super().fingerprint(), "prompts": description.index_sha256, "texts": content.rows_sha256,
            "text_encoder": content.encoder.sha256(),
        }

    def named_embeddings(self) -> Path:
        """Raises ConfigError if a recipe leaves it to its user, who has not named one."""
        if self.embeddings is None:
            raise ConfigError(
                f"data.embeddings is null: data.kind {self.kind!r} reads prompts that tools/encode_prompts.py has "
                "embedded; give their folder with data.embeddings=FOLDER"
            )
        return self.embeddings

    @property
    def prompt_shape(self) -> ConditionShape | None:
        if None in (self.length, self.width):
            self.named_embeddings()  # says so if they are not; else lengths come with `resolved`
        return ConditionShape(self.length or 1, self.width or 1, self.pooled or 0)

    def prompts(self) -> Conditions | None:
        shown = Prompts(self.shown or self.named_embeddings())
        try:
            return _padded(self.checked(shown).conditions(range(self.num_classes)), self.prompt_shape.length)
        finally:
            shown.close()

    def texts(self) -> tuple[str, ...]:
        """The prompts of `prompts`, in words, without the empty one. Raises DataError as it does."""
        shown = Prompts(self.shown or self.named_embeddings())
        try:
            return self.checked(shown).texts(self.num_classes)
        finally:
            shown.close()

    def checked(self, prompts: Prompts) -> Prompts:
        """The same. Raises DataError if they are of another text encoder or shape, or too few to be shown."""
        content, folder = prompts.content, prompts.folder
        if self.encoder not in (None, content.encoder.sha256()):
            raise DataError(
                f"{folder} was embedded by the text encoder of {content.encoder.pipeline} with SHA-256 "
                f"{content.encoder.text_encoder_sha256} (data.encoder {content.encoder.sha256()}), data.encoder is "
                f"{self.encoder}: their numbers mean something else; embed the prompts with the same pipeline and "
                "precision"
            )
        for name in ("width", "pooled"):
            found, wanted = getattr(content, name), getattr(self, name)
            if wanted not in (None, found):
                raise DataError(f"{folder} holds prompts of {name} {found}, data.{name} is {wanted}; set it to {found}")
        if self.length is not None and content.length > self.length:
            raise DataError(
                f"{folder} holds prompts of {content.length} tokens, data.length is {self.length}; set data.length="
                f"{content.length}, or embed them with --length {self.length}"
            )
        if content.encoder.padded is not None and self.length not in (None, content.length):
            raise DataError(
                f"{folder} holds prompts padded to {content.length} tokens, all of which a transformer of "
                f"{content.encoder.pipeline} sees, data.length is {self.length}; set data.length={content.length}"
            )
        if prompts.folder == (self.shown or self.embeddings) and prompts.num_prompts < (self.num_classes or 0):
            raise DataError(
                f"{folder} holds {prompts.num_prompts} prompts, data.num_classes is {self.num_classes}; set it to "
                f"{prompts.num_prompts} or less"
            )
        return prompts


def _padded(conditions: Conditions, length: int) -> Conditions:
    more = length - conditions.shape.length
    if more <= 0:
        return conditions
    return Conditions(pad(conditions.embeddings, (0, 0, 0, more)), pad(conditions.mask, (0, more)), conditions.pooled)


class PromptReader:
    """The prompts that a source trains on: what makes batches with conditions of samples and prompts' numbers."""

    def __init__(self, config: PromptedConfig, *, check: bool, device: torch.device | str) -> None:
        """`check`: whether this rank compares files. Raises ConfigError or DataError for prompts that do not fit."""
        self._length = config.prompt_shape.length
        self.prompts = config.checked(Prompts(config.named_embeddings(), check=check))
        self._device = torch.device(device)
        if check and config.shown is not None:
            config.texts()

    def batch(self, x: Tensor, conditions: Conditions) -> Batch:
        """Samples x [B, C, H, W] on the device, and the conditions that were read for them."""
        y = torch.arange(len(x), device=self._device)
        return Batch(x, y, conditions.to(self._device))

    def read(self, rows: Sequence[int]) -> Conditions:
        """Prompts by their numbers, then the empty one, on the CPU."""
        return _padded(self.prompts.conditions(rows), self._length)

    def close(self) -> None:
        self.prompts.close()
