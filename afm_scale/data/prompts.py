"""Embedded prompts as tools/encode_prompts.py packs them: different ones, and which of them each text of the source is.

    FOLDER/
        dataset.json, index.safetensors, shard-*        as of every packed set; the last sample is the empty prompt
        rows.safetensors                                `row` [N] int64: the sample that text n of the source is
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..core.conditions import Conditions, ConditionShape
from ..core.errors import DataError
from ..core.files import read_regular
from .description import DatasetDescription, PromptContent, read_content
from .embeddings import EmbeddingRecords
from .images import open_shards
from .members import text_of
from .shards import PackedShards, SampleError

T = TypeVar("T")
ROWS_NAME = "rows.safetensors"
CLASS_NAMES = ("prompts", "the empty prompt")
_EMBEDDING, _TEXT = 0, 1  # members
_HELD_BYTES = 2**28  # embeddings of a set up to this size stay in memory
_LONGEST_ROWS = 2**37  # bytes of the rows' file


def sum_of_texts(num_bytes: Tensor, crc32: Tensor) -> str:
    """SHA-256 of texts in their order, by the length [N] and the CRC-32 [N] of each, as an index of shards has them.

    So a set of images, the latents made of it and the prompts made of either can be compared without a text being read.
    """
    return sha256(torch.stack((num_bytes, crc32)).to(torch.int64).numpy().astype("<i8").tobytes()).hexdigest()


def described_prompts(folder: Path) -> tuple[DatasetDescription, PromptContent]:
    """Raises DataError if the folder holds no packed prompts."""
    description = read_content(folder, "prompts")
    content = description.content
    assert isinstance(content, PromptContent)
    if description.class_names != CLASS_NAMES or description.class_counts[1] != 1:
        raise DataError(f"{folder} does not say which of its prompts is the empty one; encode the prompts again")
    return description, content


class Prompts:
    """A packed set of prompts, to be read by their numbers. The last one is the empty prompt."""

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        """`check` (one rank is enough): sizes of shards and sums of the small files are compared.

        Raises DataError if the set is damaged or holds something else.
        """
        description, self.content = described_prompts(folder)
        self.folder = folder
        self._shards: PackedShards = open_shards(
            folder, kind="prompts", num_classes=description.num_classes, on_error="stop", check=check
        )
        self.num_prompts = description.class_counts[0]  # without the empty one
        self._records = EmbeddingRecords(self.content)
        self._held: Conditions | None = None
        if description.num_samples * self.content.num_bytes <= _HELD_BYTES:
            self._held = self._read(range(description.num_samples))

    @property
    def shape(self) -> ConditionShape:
        return ConditionShape(self.content.length, self.content.width, self.content.pooled)

    def conditions(self, rows: Sequence[int]) -> Conditions:
        """These prompts, and the empty one last: [R + 1, L, D], on the CPU as they are stored. Raises SampleError."""
        chosen = [*rows, self.num_prompts]
        return self._read(chosen) if self._held is None else self._held.rows(torch.tensor(chosen))

    def texts(self, count: int | None = None) -> tuple[str, ...]:
        """The first `count` prompts, or all but the empty one. Raises SampleError."""
        wanted = range(self.num_prompts if count is None else count)
        return tuple(self._checked(number, _TEXT, text_of) for number in wanted)

    @cached_property
    def rows(self) -> Tensor:
        """[N] int64: the prompt that each text of the source is. Raises DataError if the file is not the one packed."""
        path = self.folder / ROWS_NAME
        advice = "restore it, or encode the prompts again"
        try:
            data = read_regular(path, _LONGEST_ROWS)
            if sha256(data).hexdigest() != self.content.rows_sha256:
                raise DataError(f"{path} is not the file that dataset.json describes; {advice}")
            rows = load(data)["row"]
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; {advice}") from None
        if rows.dtype != torch.int64 or rows.shape != (self.content.num_texts,):
            raise DataError(f"{path} holds {rows.dtype} {list(rows.shape)}, wanted {self.content.num_texts}; {advice}")
        if int(rows.min()) < 0 or int(rows.max()) >= self.num_prompts:
            raise DataError(f"{path} names prompts that there are not; {advice}")
        return rows

    def _read(self, rows: Sequence[int]) -> Conditions:
        length, width, pooled = self.shape
        embeddings = torch.zeros(len(rows), length, width, dtype=self._records.dtype)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        pools = torch.zeros(len(rows), pooled, dtype=self._records.dtype)
        for place, row in enumerate(rows):
            found = self._checked(row, _EMBEDDING, self._records.read)
            count = len(found.tokens)
            embeddings[place, :count], mask[place, :count], pools[place] = found.tokens, True, found.pooled
        return Conditions(embeddings, mask, pools)

    def _checked(self, number: int, member: int, parse: Callable[[bytes], T]) -> T:
        try:
            return parse(self._shards.read(number, member))
        except ValueError as error:
            raise SampleError(self._shards.place(number), str(error)) from None

    def close(self) -> None:
        self._shards.close()
