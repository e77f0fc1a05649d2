"""Compares every byte of a packed data set with its description: what `doctor --data` reports.

Each shard is read once, in blocks: its SHA-256, its tar members against the index, and its .idx file against the tar.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice, zip_longest
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import torch

from ..core.errors import DataError
from ..core.files import open_regular, read_regular
from ..data.description import (
    DESCRIPTION_NAME,
    INDEX_NAME,
    DatasetDescription,
    PromptContent,
    Shard,
    file_sha256,
    read_description,
)
from ..data.index import SampleIndex
from ..data.members import Member, members_of
from ..data.prompts import ROWS_NAME

_BLOCK = 1 << 20
_LONGEST_IDX_LINE = 1000  # bytes; a sample has a hundred
_SHOWN = 10  # problems of one file; a shard that was overwritten has thousands


@dataclass(frozen=True, slots=True)
class Problem:
    file: str  # its name in the folder of the data set
    what: str
    harmless: bool = False  # nothing reads it; the data set is whole all the same


def verify(folder: Path, progress: Callable[[int], object] = lambda num_bytes: None) -> Iterator[Problem]:
    """All that is wrong with a data set, file by file; nothing if it is whole.

    Args:
        progress: called with the number of bytes of shards read since the last call.

    Raises DataError if dataset.json is missing or damaged: then nothing says what the rest should be.
    """
    description = read_description(folder)
    index = None
    try:
        index = SampleIndex.read(folder / INDEX_NAME)
        yield from _first(INDEX_NAME, _index_problems(folder, description, index))
    except DataError as error:
        yield Problem(INDEX_NAME, str(error))
    except OSError as error:
        yield Problem(INDEX_NAME, f"cannot be read: {error.strerror}")
    if index is not None and not index.fits(description):
        index = None  # what it says of single members would be noise
    for number, shard in enumerate(description.shards):
        yield from _shard_problems(folder, shard, _Rows.of(description, index, number), progress)
    known = {DESCRIPTION_NAME, INDEX_NAME}
    if isinstance(description.content, PromptContent):
        known.add(ROWS_NAME)
        yield from _first(ROWS_NAME, _sum_problems(folder / ROWS_NAME, description.content.rows_sha256))
    known |= {name for shard in description.shards for name in (shard.name, shard.idx_name)}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            yield Problem(path.name, "is not part of the data set", harmless=True)


def _first(file: str, problems: Iterator[str]) -> Iterator[Problem]:
    for what in islice(problems, _SHOWN):
        yield Problem(file, what)
    more = sum(1 for _ in problems)
    if more:
        yield Problem(file, f"and {more} more of these")


def _index_problems(folder: Path, description: DatasetDescription, index: SampleIndex) -> Iterator[str]:
    yield from _sum_problems(folder / INDEX_NAME, description.index_sha256)
    yield from index.problems(description)


def _sum_problems(path: Path, wanted: str) -> Iterator[str]:
    try:
        found = file_sha256(path)
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
        return
    if found != wanted:
        yield f"has SHA-256 {found}, wanted {wanted}"


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the index says of one shard, and which of its members have been met."""

    row_of: dict[str, int]  # by the name that a sample's members begin with
    label: list[int]
    places: list[list[tuple[int, int, int]]]  # per sample, per member: offset, size, CRC-32
    members: tuple[Member, ...]
    met: set[tuple[int, int]] = field(default_factory=set)  # row and member; the label comes after the members

    @classmethod
    def of(cls, description: DatasetDescription, index: SampleIndex | None, number: int) -> _Rows | None:
        if index is None:
            return None
        own = torch.nonzero(index.shard == number).flatten()
        places = torch.stack((index.offset[own], index.size[own], index.crc32[own]), dim=-1).tolist()
        return cls(
            row_of={f"{key:09d}": row for row, key in enumerate(index.key[own].tolist())},
            label=index.label[own].tolist(),
            places=[[tuple(place) for place in sample] for sample in places],
            members=members_of(description.content),
        )

    @property
    def start_bytes(self) -> int:
        """How much of a member's start it wants to see: a label, or the whole of what it looks into."""
        return max(4, *(member.num_bytes for member in self.members))

    def problem(self, member: _Found) -> str | None:
        stem, _, extension = member.name.partition(".")
        row = self.row_of.get(stem)
        slot = self._slot(extension)
        if row is None or slot is None:
            return f"has a member {member.name!r} that is not in {INDEX_NAME}"
        if (row, slot) in self.met:
            return f"has member {member.name!r} twice"
        self.met.add((row, slot))
        if slot == len(self.members):
            label = int.from_bytes(member.start[:4], "little", signed=True)
            if member.size != 4 or label != self.label[row]:
                return f"member {member.name!r} holds label {label}, {INDEX_NAME} says {self.label[row]}"
            return None
        found = (member.offset, member.size, member.crc32)
        for what, here, wanted in zip(("byte", "size", "CRC-32"), found, self.places[row][slot], strict=True):
            if here != wanted:
                return f"member {member.name!r} has {what} {here}, {INDEX_NAME} says {wanted}"
        try:
            check = self.members[slot].check
            if check is not None:
                check(member.start)
        except ValueError as error:
            return f"member {member.name!r}: {error}"
        return None

    def _slot(self, extension: str) -> int | None:
        extensions = [member.extension for member in self.members]
        if extension == "cls":
            return len(extensions)
        if extension in extensions:
            return extensions.index(extension)
        return 0 if extensions[0] is None else None

    def missing(self) -> Iterator[str]:
        names = [f"a member ({member.extension or 'image'})" for member in self.members] + ["its label"]
        for stem, row in self.row_of.items():
            for slot, name in enumerate(names):
                if (row, slot) not in self.met:
                    yield f"lacks {name} of sample {stem}"


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    kind: bytes  # tarfile.REGTYPE, SYMTYPE, ...
    offset: int
    size: int
    crc32: int
    start: bytes  # its first bytes, as many as were asked for

    def unsafe(self) -> str | None:
        path = PurePosixPath(self.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            return f"has a member that would be unpacked outside the folder: {self.name!r}"
        if self.kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            return f"has a member that is no file but of type {self.kind.decode('latin-1')!r}: {self.name!r}"
        return None


class _ShardReader:
    """Reads a tar forwards, once, and sums all that passes."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], object], start_bytes: int) -> None:
        self._file = file
        self._start_bytes = start_bytes
        self._progress = progress
        self._digest = sha256()
        self.position = 0

    def members(self) -> Iterator[_Found]:
        """Raises tarfile.TarError where the tar cannot be followed further."""
        while True:
            header = self._read(tarfile.BLOCKSIZE)
            if header == b"\0" * tarfile.BLOCKSIZE:
                return
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            if info.size < 0:
                raise tarfile.ReadError(f"member {info.name!r} says that it has {info.size} bytes")
            offset, left, crc32, start = self.position, info.size, 0, b""
            while left:
                block = self._read(min(left, _BLOCK))
                if not block:
                    raise tarfile.ReadError(f"it ends inside member {info.name!r}")
                left, crc32 = left - len(block), zlib.crc32(block, crc32)
                start += block[:self._start_bytes - len(start)]
            self._read(-info.size % tarfile.BLOCKSIZE)
            yield _Found(info.name, info.type, offset, info.size, crc32, start)

    def finish(self) -> tuple[int, str]:
        """Reads what is left: (bytes, SHA-256) of the whole file."""
        while self._read(_BLOCK):
            pass
        return self.position, self._digest.hexdigest()

    def _read(self, num_bytes: int) -> bytes:
        block = self._file.read(num_bytes)
        self._digest.update(block)
        self.position += len(block)
        self._progress(len(block))
        return block


def _shard_problems(
    folder: Path, shard: Shard, rows: _Rows | None, progress: Callable[[int], object]
) -> Iterator[Problem]:
    idx: list[str] | None = None
    try:
        with open_regular(folder / shard.name) as file:
            reader = _ShardReader(file, progress, 4 if rows is None else rows.start_bytes)
            idx = []
            yield from _first(shard.name, _tar_problems(reader, rows, idx))
            num_bytes, digest = reader.finish()
        if num_bytes != shard.num_bytes:
            yield Problem(shard.name, f"has {num_bytes} bytes, wanted {shard.num_bytes}")
        if digest != shard.sha256:
            yield Problem(shard.name, f"has SHA-256 {digest}, wanted {shard.sha256}")
    except OSError as error:
        yield Problem(shard.name, f"cannot be read: {error.strerror}")
    try:
        text = read_regular(folder / shard.idx_name, _LONGEST_IDX_LINE * (shard.num_samples + 1))
    except OSError as error:
        yield Problem(shard.idx_name, f"cannot be read: {error.strerror}")
        return
    if idx is not None:
        yield from _first(shard.idx_name, _idx_problems(text, idx))
    if sha256(text).hexdigest() != shard.idx_sha256:
        yield Problem(shard.idx_name, f"has SHA-256 {sha256(text).hexdigest()}, wanted {shard.idx_sha256}")


def _tar_problems(reader: _ShardReader, rows: _Rows | None, idx: list[str]) -> Iterator[str]:
    """What is wrong with the members; `idx` is filled with the lines that the .idx file should have."""
    samples: dict[str, list[str]] = {}
    try:
        for member in reader.members():
            unsafe = member.unsafe()
            if unsafe:
                yield unsafe
                continue
            stem, _, extension = member.name.partition(".")
            samples.setdefault(stem, []).append(f"{extension} {member.offset} {member.size} {member.name}")
            problem = rows and rows.problem(member)
            if problem:
                yield problem
    except tarfile.TarError as error:
        yield f"cannot be followed past byte {reader.position}: {error}"
    if rows is not None:
        yield from rows.missing()
    idx += [f"v1.2 {len(samples)}", *map(" ".join, samples.values())]


def _idx_problems(text: bytes, wanted: list[str]) -> Iterator[str]:
    found = text.decode("utf-8", "surrogateescape").split("\n")
    for number, (here, there) in enumerate(zip_longest(found, [*wanted, ""]), start=1):
        if here != there:
            yield f"line {number} is {_short(here)}, the tar wants {_short(there)}"


def _short(line: str | None) -> str:
    return "missing" if line is None else repr(line[:200])
