"""An .npz file read array by array: nothing in it is unpickled, and no size is believed before it is checked."""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError

_BLOCK_BYTES = 4 << 20
# RuntimeError: an encrypted member; NotImplementedError: a compression that Python does not know.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError)
_BAD_HEADER = (ValueError, SyntaxError, TypeError, tokenize.TokenError, MemoryError, RecursionError)
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, slots=True)
class Member:
    """What the header of an array says; `shape` and `dtype` fit the bytes that the archive lists."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    crc32: int  # of the array and its header, as the archive lists it
    header_bytes: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Npz:
    """The arrays of an .npz file, compressed or not."""

    def __init__(self, path: Path) -> None:
        """Reads the headers. Raises DataError if the file is not a whole npz of plain arrays in row-major order."""
        self.path = path
        members = {}
        with self._explained(), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name != info.filename:
                    with archive.open(info) as file:
                        members[name] = self._header(name, file, info)
        if not members:
            raise DataError(f"{path} holds no arrays; wanted an npz as numpy.savez writes it")
        self.members: Mapping[str, Member] = members

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"{self.path} cannot be read as an npz (it is damaged, truncated or another kind of file): {reason}; "
                "wanted a file as numpy.savez writes it: restore it or make it again"
            ) from None

    def _header(self, name: str, file: IO[bytes], info: zipfile.ZipInfo) -> Member:
        place = f"{self.path}, array {name!r}"
        try:
            read_header = _HEADER_READERS[np.lib.format.read_magic(file)]
            shape, by_columns, dtype = read_header(file)
        except KeyError:
            raise DataError(f"{place}: its format is neither 1.0 nor 2.0 of .npy; save it with numpy.savez") from None
        except _BAD_HEADER as error:
            raise DataError(f"{place} has no .npy header that can be read: {error}; save it with numpy.savez") from None
        if dtype.hasobject:
            raise DataError(f"{place} holds pickled Python objects, which are never loaded; save plain numbers")
        if by_columns and len(shape) > 1:
            raise DataError(f"{place} is stored in column-major order; save numpy.ascontiguousarray of it")
        header_bytes = file.tell()
        wanted = header_bytes + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or info.file_size != wanted:
            raise DataError(
                f"{place} is {dtype} {list(shape)} by its header, which is {wanted} bytes; the file lists "
                f"{info.file_size}: it is damaged, make it again"
            )
        return Member(shape, dtype, info.CRC, header_bytes)

    def member(self, name: str) -> Member:
        """Raises DataError if there is no such array."""
        if name not in self.members:
            held = ", ".join(f"{key} ({member})" for key, member in self.members.items())
            raise DataError(f"{self.path} has no array {name!r}; it holds {held}")
        return self.members[name]

    def read(self, name: str) -> NDArray[Any]:
        """A whole array. Raises DataError if it is not there or its bytes are damaged (CRC-32)."""
        member = self.member(name)
        with self._explained(), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            file.seek(member.header_bytes)
            data = _exactly(file, math.prod(member.shape) * member.dtype.itemsize)
        return np.frombuffer(data, member.dtype).reshape(member.shape)

    def rows(self, name: str, stop: int) -> Iterator[NDArray[Any]]:
        """Yields rows 0 ... stop - 1 of an array, one after another, with some megabytes in memory at a time.

        Raises DataError if the bytes are damaged; after the last row if it takes their sum (CRC-32) to see it.
        """
        member = self.member(name)
        row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
        at_once = max(1, _BLOCK_BYTES // row_bytes)
        with self._explained(), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            file.seek(member.header_bytes)
            for start in range(0, stop, at_once):
                count = min(at_once, stop - start)
                data = _exactly(file, count * row_bytes)
                yield from np.frombuffer(data, member.dtype).reshape(count, *member.shape[1:])


def _exactly(file: IO[bytes], num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise EOFError(f"{len(data)} of {num_bytes} bytes are there")
    return data
