"""An .npz file read array by array: nothing in it is unpickled, and no size is believed before it is checked.

A few kilobytes can be packed so that they unfold to all the memory there is. So nothing is taken that numpy would not
have written: more arrays than anybody names, headers longer than a shape needs, other ways of packing than deflate.
"""

from __future__ import annotations

import io
import math
import struct
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

from ..core.errors import DataError
from ..core.files import open_regular

_BLOCK_BYTES = 4 << 20
_MOST_ARRAYS = 1000
_LONGEST_HEADER = 10_000  # characters, as numpy has it
_PACKED_BY_NUMPY = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LARGEST_ROW = 2**28  # bytes
_LARGEST_ARRAY = 2**33  # bytes of one that is read whole
_UNSUSPECTED = 2**28  # bytes, up to which it may be packed as well as it can be
_MOST_REAL_PACKING = 100  # times that features of real images become smaller: less than 2
# RuntimeError: an encrypted member; NotImplementedError: a version of zip that Python does not know; ValueError,
# UnicodeDecodeError among them, and IndexError: lists of contents that contradict themselves.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, IndexError,
    struct.error, OverflowError,
)
_BAD_HEADER = (ValueError, SyntaxError, TypeError, tokenize.TokenError, MemoryError, RecursionError)
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, slots=True)
class Member:
    """What the header of an array says; `shape` and `dtype` fit the bytes that the archive lists."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    crc32: int  # of the array and its header, as the archive lists it
    header_bytes: int
    packed_bytes: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Npz:
    """The arrays of an .npz file, compressed or not."""

    def __init__(self, path: Path) -> None:
        """Reads the headers. Raises DataError if the file is not a whole npz of plain arrays in row-major order."""
        self.path = path
        members = {}
        with self._explained(), self._archive() as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(infos) > _MOST_ARRAYS or len({info.filename for info in infos}) < len(infos):
                raise DataError(f"{path} holds {len(infos):,} arrays, or two of one name; wanted few, of other names")
            for info in infos:
                name = info.filename.removesuffix(".npy")
                if info.compress_type not in _PACKED_BY_NUMPY:
                    raise DataError(f"{path}, array {name!r} is packed as numpy does not; save it with numpy.savez")
                with archive.open(info) as file:
                    members[name] = self._header(name, file, info)
        if not members:
            raise DataError(f"{path} holds no arrays; wanted an npz as numpy.savez writes it")
        self.members: Mapping[str, Member] = members

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except _DAMAGE as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"{self.path} cannot be read as an npz (it is damaged, truncated or another kind of file): {reason}; "
                "wanted a file as numpy.savez writes it: restore it or make it again"
            ) from None

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        with open_regular(self.path) as file, zipfile.ZipFile(file) as archive:
            yield archive

    def _header(self, name: str, file: IO[bytes], info: zipfile.ZipInfo) -> Member:
        place = f"{self.path}, array {name!r}"
        try:
            magic = file.read(np.lib.format.MAGIC_LEN)
            version = np.lib.format.read_magic(io.BytesIO(magic))
            length = _exactly(file, _LENGTH_BYTES[version])
            num_chars = int.from_bytes(length, "little")
            if num_chars > _LONGEST_HEADER:
                raise ValueError(f"one of {num_chars:,} characters")
            shape, by_columns, dtype = _HEADER_READERS[version](io.BytesIO(length + _exactly(file, num_chars)))
        except KeyError:
            raise DataError(f"{place}: its format is neither 1.0 nor 2.0 of .npy; save it with numpy.savez") from None
        except _BAD_HEADER as error:
            raise DataError(f"{place} has no .npy header that can be read: {error}; save it with numpy.savez") from None
        if dtype.hasobject:
            raise DataError(f"{place} holds pickled Python objects, which are never loaded; save plain numbers")
        if by_columns and len(shape) > 1:
            raise DataError(f"{place} is stored in column-major order; save numpy.ascontiguousarray of it")
        header_bytes = len(magic) + len(length) + num_chars
        wanted = header_bytes + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or dtype.itemsize == 0 or info.file_size != wanted:
            raise DataError(
                f"{place} is {dtype} {list(shape)} by its header, which is {wanted} bytes; the file lists "
                f"{info.file_size}: it is damaged, make it again"
            )
        return Member(shape, dtype, info.CRC, header_bytes, info.compress_size)

    def member(self, name: str) -> Member:
        """Raises DataError if there is no such array."""
        if name not in self.members:
            held = ", ".join(f"{key} ({member})" for key, member in self.members.items())
            raise DataError(f"{self.path} has no array {name!r}; it holds {held}")
        return self.members[name]

    def read(self, name: str) -> NDArray[Any]:
        """A whole array. Raises DataError if it is not there, its bytes are damaged (CRC-32), or they are too many."""
        member = self.member(name)
        num_bytes = math.prod(member.shape) * member.dtype.itemsize
        if num_bytes > min(_LARGEST_ARRAY, max(_UNSUSPECTED, _MOST_REAL_PACKING * member.packed_bytes)):
            raise DataError(
                f"{self.path}, array {name!r} is {member}, which takes {num_bytes:,} bytes and is packed into "
                f"{member.packed_bytes:,}: no array of real numbers is; make the file again"
            )
        with self._explained(), self._archive() as archive, archive.open(f"{name}.npy") as file:
            file.seek(member.header_bytes)
            data = _exactly(file, num_bytes)
        return np.frombuffer(data, member.dtype).reshape(member.shape)

    def rows(self, name: str, stop: int) -> Iterator[NDArray[Any]]:
        """Yields rows 0 ... stop - 1 of an array, one after another, with some megabytes in memory at a time.

        Raises DataError if the bytes are damaged; after the last row if it takes their sum (CRC-32) to see it.
        """
        member = self.member(name)
        row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
        if not 0 < row_bytes <= _LARGEST_ROW:
            raise DataError(f"{self.path}, array {name!r} is {member}: a row has {row_bytes:,} bytes and is no image")
        at_once = max(1, _BLOCK_BYTES // row_bytes)
        with self._explained(), self._archive() as archive, archive.open(f"{name}.npy") as file:
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
