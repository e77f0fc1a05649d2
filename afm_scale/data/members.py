"""What the members of a packed sample are, by the content of its data set: their names, and whether their bytes can be.

The label, which every sample has as a member `cls`, is not among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .description import RECORD_HEADER, TEXT_BYTES, Content, ImageContent, LatentContent
from .embeddings import EmbeddingRecords
from .index import NPY_HEADERS
from .latents import MEMBERS, Records

TEXT = "txt"
_ENCODINGS = {"png": "png", "jpeg": "jpg"}


class Member(NamedTuple):
    extension: str | None  # None: any
    check: Callable[[bytes], object] | None = None  # raises ValueError for bytes that it cannot be; None: any may be
    num_bytes: int = 0  # as many of the first as `check` wants to see


def members_of(content: Content) -> tuple[Member, ...]:
    """In the order of the index."""
    text = Member(TEXT, text_of, TEXT_BYTES + 1)
    if isinstance(content, ImageContent):
        return (Member(_ENCODINGS.get(content.encoding)), *[text] * content.texts)
    if isinstance(content, LatentContent):
        records = Records((2, *content.shape))
        latents = [Member(f"{name}.npy", records.values, records.num_bytes + NPY_HEADERS[1]) for name in MEMBERS]
        return (*latents, *[text] * content.texts)
    records = EmbeddingRecords(content)
    return Member("safetensors", records.read, content.num_bytes + RECORD_HEADER), text


def text_of(data: bytes) -> str:
    """The text of a sample, maybe empty. Raises ValueError if the bytes are none."""
    if len(data) > TEXT_BYTES:
        raise ValueError(f"the text has more than {TEXT_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the text is not UTF-8: {error}") from None
