"""Reads packed samples in any order: one `pread` each, by an index of where every sample lies."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path

from ..core.errors import DataError
from ..core.files import open_descriptor, require_regular
from .description import DESCRIPTION_NAME, INDEX_NAME, DatasetDescription, file_sha256, read_description
from .index import SampleIndex

_OPEN_FILES = 64


class SampleError(DataError):
    """A sample that cannot be read or decoded. `data.on_error` says what becomes of it."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(
            f"{place}: {reason}; restore the shard (python -m afm_scale doctor --data FOLDER finds all that is "
            "damaged), or set data.on_error=skip"
        )
        self.place = place
        self.reason = reason


class PackedShards:
    """A data set packed by this project. Can be pickled: every process opens its own files."""

    def __init__(self, folder: Path) -> None:
        """Reads the description and the index. Raises DataError if they are missing, damaged or contradict each other.

        After that every sample lies within its shard, as long as the shard has the size that is described.
        """
        self.folder = folder
        self.description: DatasetDescription = read_description(folder)
        self.index = SampleIndex.read(folder / INDEX_NAME)
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, least recently used first
        if problem := next(self.index.problems(self.description), None):
            raise DataError(f"{folder / INDEX_NAME} {problem}; restore both, or pack the data set again")

    def __reduce__(self) -> tuple:
        return PackedShards, (self.folder,)

    @property
    def num_samples(self) -> int:
        return self.description.num_samples

    def check(self) -> list[str]:
        """Shards that are missing, of another size, or beside another .idx file; one line each.

        Reads the small files whole and asks the sizes of the large ones: a second for a thousand shards. Raises
        DataError if the index is not the one that was packed.
        """
        index = self.folder / INDEX_NAME
        if file_sha256(index) != self.description.index_sha256:
            raise DataError(f"{index} is not the index that {DESCRIPTION_NAME} describes; restore it, or pack again")
        return [problem for shard in range(len(self.description.shards)) for problem in self._shard_problems(shard)]

    def refuse_damage(self, advice: str) -> None:
        """Raises DataError with the first problem that `check` finds, how many more there are, and what to do."""
        problems = self.check()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}; {advice}")

    def _shard_problems(self, number: int) -> list[str]:
        shard = self.description.shards[number]
        problems = []
        try:
            require_regular(self.folder / shard.name)
            size = (self.folder / shard.name).stat().st_size
            if size != shard.num_bytes:
                problems.append(f"{self.folder / shard.name} has {size} bytes, wanted {shard.num_bytes}")
        except OSError as error:
            problems.append(f"{self.folder / shard.name}: {error.strerror}")
        try:
            if file_sha256(self.folder / shard.idx_name) != shard.idx_sha256:
                problems.append(f"{self.folder / shard.idx_name} is not the index of {shard.name}")
        except OSError as error:
            problems.append(f"{self.folder / shard.idx_name}: {error.strerror}")
        return problems

    def place(self, sample: int) -> str:
        """A sample's shard and key, for messages."""
        shard = self.description.shards[int(self.index.shard[sample])]
        return f"{self.folder / shard.name}, sample {int(self.index.key[sample]):09d}"

    def read(self, sample: int, member: int = 0) -> bytes:
        """The bytes of one member of a sample, 0 <= sample < num_samples.

        Raises SampleError if they cannot be read or are not the bytes that were packed.
        """
        offset, size = int(self.index.offset[sample, member]), int(self.index.size[sample, member])
        try:
            data = os.pread(self._open(int(self.index.shard[sample])), size, offset)
        except OSError as error:
            raise SampleError(self.place(sample), error.strerror or str(error)) from None
        if len(data) != size:
            raise SampleError(self.place(sample), f"the shard is truncated: {len(data)} of {size} bytes are there")
        if zlib.crc32(data) != int(self.index.crc32[sample, member]):
            raise SampleError(self.place(sample), "the bytes are not those that were packed (CRC-32)")
        return data

    def _open(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            if len(self._files) == _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = open_descriptor(self.folder / self.description.shards[shard].name)
        return self._files[shard]

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])
