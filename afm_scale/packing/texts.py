"""Texts that prompts are made of: the lines of a file, a column of a parquet file, or those of a packed set."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.files import open_regular, read_regular
from ..core.packages import require
from ..data.description import DESCRIPTION_NAME, TEXT_BYTES, PromptContent
from ..data.members import text_of
from ..data.prompts import sum_of_texts
from ..data.shards import PackedShards, SampleError


@dataclass(frozen=True)
class Texts:
    """The texts of a source, in its order."""

    texts: Sequence[str]
    sha256: str  # `prompts.sum_of_texts`

    def different(self) -> tuple[list[str], Tensor]:
        """Each text once, in the order they first come in; and [N] int64, which of them text n is."""
        places = {text: place for place, text in enumerate(dict.fromkeys(self.texts))}
        return list(places), torch.tensor([places[text] for text in self.texts], dtype=torch.int64)


def read_texts(source: Path, column: str | None = None) -> Texts:
    """Of a file of lines, a parquet file (`column`: which of it), or a packed set of images or latents with texts.

    Raises DataError if it cannot be read, holds no texts, or one of them is blank: which prompt a sample without a text
    would have nobody has said.
    """
    if source.is_dir():
        if column is not None:
            raise DataError(f"--column {column} is of a parquet file, and {source} is a folder; leave it out")
        return _of_packed(source)
    try:
        data = None if _begins_as_parquet(source) else read_regular(source, None)
    except OSError as error:
        raise DataError(
            f"{source} cannot be read: {error.strerror}; wanted a file of prompts, one a line, a parquet file, or a "
            "packed set with texts"
        ) from None
    if data is None:
        require("pyarrow", f"{source}, a parquet file,", "parquet")
        from .parquet import texts_of

        return _checked(texts_of(source, column), lambda number: f"{source}, row {number}")
    if column is not None:
        raise DataError(f"--column {column} is of a parquet file, and {source} is none; leave it out")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is no text in UTF-8: {error}; wanted prompts, one a line") from None
    return _checked(lines, lambda number: f"{source}, line {number + 1}")


def _begins_as_parquet(path: Path) -> bool:
    """Raises OSError."""
    with open_regular(path) as file:
        return file.read(4) == b"PAR1"


def _checked(texts: Iterable[str | None], place: Callable[[int], str]) -> Texts:
    found: list[str] = []
    for number, text in enumerate(texts):
        if text is None or not text.strip():
            raise DataError(f"{place(number)} has no text; leave out what has none, or give it a prompt")
        if len(text.encode(errors="surrogateescape")) > TEXT_BYTES:
            raise DataError(f"{place(number)} has a text of more than {TEXT_BYTES} bytes; wanted a prompt")
        found.append(text)
    if not found:
        raise DataError(f"{place(0)}: there is no text; wanted prompts, one a line")
    encoded = [text.encode() for text in found]
    sizes, sums = torch.tensor([len(one) for one in encoded]), torch.tensor([zlib.crc32(one) for one in encoded])
    return Texts(found, sum_of_texts(sizes, sums))


def _of_packed(folder: Path) -> Texts:
    shards = PackedShards(folder)
    content = shards.description.content
    if isinstance(content, PromptContent) or not content.texts:
        what = "embedded prompts already" if isinstance(content, PromptContent) else f"{content.kind} without texts"
        raise DataError(
            f"{folder} holds {what}; wanted a packed set with texts ({DESCRIPTION_NAME} says `texts`), as "
            "make_shards --texts packs them"
        )
    shards.refuse_damage("restore it, or pack it again")
    member = content.num_members - 1

    def text(sample: int) -> str:
        try:
            return text_of(shards.read(sample, member))
        except ValueError as error:
            raise SampleError(shards.place(sample), str(error)) from None

    found = _checked(map(text, range(shards.num_samples)), shards.place)
    shards.close()
    return found
