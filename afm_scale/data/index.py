"""index.safetensors: where every packed sample lies, and whether that can be true of the shards that are described.

What the index says is compared with dataset.json before a byte of a shard is read by it, for a SHA-256 tells only that
it is the index that was described: whoever writes one file can write the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import DataError
from ..core.files import require_regular
from .description import (
    BLOCK_BYTES,
    DESCRIPTION_NAME,
    LARGEST_SAMPLE,
    RECORD_HEADER,
    TEXT_BYTES,
    Content,
    DatasetDescription,
    LatentContent,
    PromptContent,
)

NPY_HEADERS = (10, 2**16 + 10)  # bytes of the header of an .npy record of a latent, at least and at most


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Where N samples of K members each lie, in the order of the shards; all int64 on the CPU."""

    shard: Tensor  # [N] index into DatasetDescription.shards
    key: Tensor  # [N] the sample's number, from which its members' names are made
    label: Tensor  # [N]
    offset: Tensor  # [N, K] bytes from the start of the shard
    size: Tensor  # [N, K] bytes
    crc32: Tensor  # [N, K]

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def concatenate(cls, parts: list[SampleIndex]) -> SampleIndex:
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in cls.__slots__})

    @classmethod
    def read(cls, path: Path) -> SampleIndex:
        """Raises DataError if the file is not an index: six tensors of int64, of one number of samples and members.

        What they say is not looked at. The file is mapped into memory: processes share it.
        """
        try:
            require_regular(path)
            with safe_open(path, framework="pt") as file:
                if problem := _misfit(cls, {name: file.get_slice(name) for name in file.keys()}):
                    raise DataError(f"{path} cannot be read as an index: {problem}; pack the data set again")
                return cls(**{name: file.get_tensor(name) for name in cls.__slots__})
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path} cannot be read as an index: {reason}; pack the data set again") from None

    def fits(self, description: DatasetDescription) -> bool:
        """Whether it has as many samples, of as many members, as the description says."""
        return tuple(self.offset.shape) == (description.num_samples, description.content.num_members)

    def problems(self, description: DatasetDescription) -> Iterator[str]:
        """All that cannot be true of the data set that is described, each in words that go on from the file's name.

        Every sample is looked at, without a loop: 0.1 s for a million of them.
        """
        if not self.fits(description):
            (found, members), wanted = self.offset.shape, description.content.num_members
            yield (
                f"is of {found} samples with {members} members each, {DESCRIPTION_NAME} of {description.num_samples} "
                f"with {wanted}"
            )
            return
        yield from self._problems_of_labels(description)
        shards = description.shards
        counts = torch.tensor([shard.num_samples for shard in shards])
        in_shard = torch.repeat_interleave(counts)
        if not torch.equal(self.shard, in_shard):
            yield f"places samples in other shards than {DESCRIPTION_NAME} says"
            return  # where the shards begin is not known
        same_shard = in_shard[1:] == in_shard[:-1]
        if bool((self.key < 0).any()) or bool(((self.key[1:] <= self.key[:-1]) & same_shard).any()):
            yield "has keys that do not grow from sample to sample of a shard"
        if not _all_within(self.crc32, 0, 2**32 - 1):
            yield "has a CRC-32 of more than 32 bits"
        ends = torch.tensor([shard.num_bytes for shard in shards])[in_shard, None]
        yield from self._problems_of_places(description, ends, same_shard)

    def _problems_of_labels(self, description: DatasetDescription) -> Iterator[str]:
        low, high = (int(number) for number in torch.aminmax(self.label))
        if low < 0 or high >= description.num_classes:
            yield f"holds labels from {low} to {high}, wanted 0 to {description.num_classes - 1}"
            return
        counts = torch.bincount(self.label, minlength=description.num_classes).tolist()
        for name, count, wanted in zip(description.class_names, counts, description.class_counts, strict=True):
            if count != wanted:
                yield f"holds {count} samples of class {name!r}, {DESCRIPTION_NAME} says {wanted}"

    def _problems_of_places(self, description: DatasetDescription, ends: Tensor, same_shard: Tensor) -> Iterator[str]:
        """Of members that lie outside of their shard or over each other, or cannot hold what they should."""
        content = description.content
        for columns, low, high, what in _sizes_of(content):
            if not _all_within(self.size[:, columns], low, high):
                smallest, largest = (int(number) for number in torch.aminmax(self.size[:, columns]))
                yield f"has members of {smallest} to {largest} bytes, wanted {low} to {high} of {what}"
                return  # sums of such sizes might not fit 64 bits
        # No number is summed before it is known to be small: 2^63 - 1 and a block more would be negative.
        if bool((self.offset < BLOCK_BYTES).any()) or bool((self.offset > ends - self.size).any()):
            yield f"places members outside of their shards, as {DESCRIPTION_NAME} has their sizes"
            return
        filled = (self.size + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES
        next_begins, next_in_shard = (self.offset + filled + BLOCK_BYTES).flatten(), same_shard
        if content.num_members > 1:
            next_in_shard = torch.ones(self.offset.shape, dtype=torch.bool)
            next_in_shard[:-1, -1] = same_shard
            next_in_shard = next_in_shard.flatten()[:-1]
        begins = self.offset.flatten()
        if bool(((begins[1:] < next_begins[:-1]) & next_in_shard).any()):
            yield "places members over each other, or in another order than they were written in"
        if bool((begins % BLOCK_BYTES != 0).any()):
            yield f"places members where none can begin: at no multiple of {BLOCK_BYTES} bytes"


def _sizes_of(content: Content) -> list[tuple[slice, int, int, str]]:
    """Of which members, at least and at most how many bytes, and what they are."""
    low, high = 0, LARGEST_SAMPLE
    if isinstance(content, LatentContent):
        low, high = (content.num_bytes + header for header in NPY_HEADERS)
    if isinstance(content, PromptContent):
        high = content.num_bytes + RECORD_HEADER
    has_texts = isinstance(content, PromptContent) or content.texts
    own = content.num_members - has_texts
    texts = [(slice(own, None), 0, TEXT_BYTES, "texts")] if has_texts else []
    return [(slice(0, own), low, high, content.kind), *texts]


def _misfit(cls: type, found: dict) -> str | None:
    """Why tensors are not those of an index; only the header has been read."""
    wanted = set(cls.__slots__)
    if found.keys() != wanted:
        odd = ", ".join(sorted(repr(name[:40]) for name in found.keys() ^ wanted)[:6])
        return f"it has {odd} too much or too little"
    if others := sorted(name for name, tensor in found.items() if tensor.get_dtype() != "I64"):
        return f"{others[0]} is {found[others[0]].get_dtype()}, wanted int64"
    shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
    members = shapes["offset"]
    if len(members) != 2 or members[1] < 1:
        return f"offset is of shape {list(members)}, wanted [samples, members]"
    for name, shape in shapes.items():
        needed = members if name in ("size", "crc32") else members[:1] if name != "offset" else members
        if shape != needed:
            return f"{name} is of shape {list(shape)} beside offset of {list(members)}, wanted {list(needed)}"
    return None


def _all_within(numbers: Tensor, low: int, high: int) -> bool:
    smallest, largest = torch.aminmax(numbers)
    return low <= int(smallest) and int(largest) <= high
