"""A tensor as torch.save writes it, read back without torch.load: nothing in it is unpickled or believed.

It is a ZIP archive, not compressed, whose `data.pkl` says how one tensor lies in the bytes of `data/0`.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .dtypes import DTYPES
from .metadata import Chunk
from .pickled import Made, Name, Reference, read_pickle

REBUILD, REBUILD_TYPED = (Name("torch._utils", f"_rebuild_tensor_v{version}") for version in (2, 3))
NAMED_DTYPES = {Name("torch", name): dtype for name, dtype in DTYPES.items()}
STORAGES = {  # torch's names for a storage of a type; the younger types have none, and go by REBUILD_TYPED
    Name("torch", f"{name}Storage"): dtype for name, dtype in {
        "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32,
        "Long": torch.int64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32,
        "Double": torch.float64, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}
UNTYPED, HOOKS = Name("torch.storage", "UntypedStorage"), Name("collections", "OrderedDict")
_COUNTS = {REBUILD: 6, REBUILD_TYPED: 7}  # of arguments
_NAMES = {REBUILD, REBUILD_TYPED, UNTYPED, HOOKS, *NAMED_DTYPES, *STORAGES}
_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, and the lengths of its name and of what else follows
_MOST_BYTES_ABOUT = 2**12
_PIECE_BYTES = 2**22  # above this a check sum is taken beside reading


def read_chunk(file: BinaryIO, chunk: Chunk, *, is_compared: bool = False) -> Tensor:
    """The tensor that lies at a chunk's place in an open file: of its sizes and dtype, on the CPU.

    Raises ValueError if anything else lies there, before memory is asked for, or if its bytes have changed since they
    were written; `is_compared`: the whole file is known to be as it was, or that is found out elsewhere.
    """
    archive = Archive(file, chunk.offset, chunk.length, is_compared)
    if (order := archive.small("byteorder")) != sys.byteorder.encode():
        raise ValueError(f"its bytes are in the order {order[:20]!r}, this machine's are {sys.byteorder}")
    stride = _stride(read_pickle(archive.small("data.pkl"), _NAMES), chunk)
    num_bytes = math.prod(chunk.sizes) * chunk.dtype.itemsize
    raw = torch.empty(num_bytes, dtype=torch.uint8)
    if num_bytes:
        archive.read_into(memoryview(raw.numpy()), "data/0")
    return raw.view(chunk.dtype).as_strided(chunk.sizes, stride)


class Archive:
    """The ZIP archive between two bytes of a file, its members by their names in it. Raises ValueError for none."""

    def __init__(self, file: BinaryIO, offset: int, length: int, is_compared: bool = False) -> None:
        self._is_compared = is_compared
        self._part = _Part(file, offset, length)
        try:
            with zipfile.ZipFile(self._part) as archive:
                self._members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            raise ValueError(f"it is no tensor of torch's: {error}") from error

    def small(self, name: str, limit: int = _MOST_BYTES_ABOUT) -> bytes:
        """The whole of a member that is not the numbers themselves."""
        content = bytearray(min(self._member(name).file_size, limit))
        self.read_into(memoryview(content), name)
        return bytes(content)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Bytes of a member, as it says of itself."""
        return self._member(name).file_size

    def read_into(self, buffer: memoryview, name: str) -> None:
        """A member of exactly the buffer's length. Raises ValueError for any other, and if its check sum is wrong."""
        member = self._member(name)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != len(buffer):
            raise ValueError(f"its {name} has {member.file_size} bytes, not the {len(buffer)} of such a tensor")
        if self._is_compared or len(buffer) < _PIECE_BYTES:
            self.read_part_into(buffer, name, 0)
            found = member.CRC if self._is_compared else zlib.crc32(buffer)
        else:
            found = self._read_and_sum(buffer, name)
        if found != member.CRC:
            raise ValueError(f"the bytes of its {name} are not those that were written")

    def _read_and_sum(self, buffer: memoryview, name: str) -> int:
        """The check sum of what is read, taken of each piece in a thread while the next one is read."""
        with ThreadPoolExecutor(1) as beside:
            summed = beside.submit(int, 0)
            for start in range(0, len(buffer), _PIECE_BYTES):
                piece = buffer[start:start + _PIECE_BYTES]
                self.read_part_into(piece, name, start)
                summed = beside.submit(lambda piece, before: zlib.crc32(piece, before.result()), piece, summed)
            return summed.result()

    def read_part_into(self, buffer: memoryview, name: str, first: int) -> None:
        """As many bytes of a member as the buffer has, from its byte `first` on; no check sum can be compared."""
        member = self._member(name)
        if member.compress_type != zipfile.ZIP_STORED or first + len(buffer) > member.file_size:
            raise ValueError(f"its {name} is compressed, or has fewer than {first + len(buffer)} bytes")
        self._part.seek(max(member.header_offset, 0))
        header = self._part.read(_HEADER.size)
        if len(header) != _HEADER.size or header[:4] != b"PK\3\4":
            raise ValueError(f"its {name} does not lie where it is said to")
        _, length_of_name, length_of_rest = _HEADER.unpack(header)
        self._part.seek(length_of_name + length_of_rest + first, io.SEEK_CUR)
        if self._part.readinto(buffer) != len(buffer):
            raise ValueError("it has been cut off")

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise ValueError(f"it has no {name}")
        return self._members[name]


class _Part(io.RawIOBase):
    """The bytes of a file between two places, as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        if not 0 <= start + offset <= self._length:
            raise io.UnsupportedOperation("a part of it lies outside of it")  # an OSError and a ValueError, as files do
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._length - self._place]
        self._file.seek(self._offset + self._place)
        count = self._file.readinto(view)
        self._place += count
        return count


def _stride(value: Any, chunk: Chunk) -> tuple[int, ...]:
    """How the tensor of a `data.pkl` lies in its storage, which it fills. Raises ValueError if it is not the chunk."""
    if not isinstance(value, Made) or len(value.arguments) != _COUNTS.get(value.of) or value.state is not None:
        raise ValueError("it is no plain tensor")
    storage, first, sizes, stride = value.arguments[:4]
    if not isinstance(storage, Reference) or not isinstance(storage.to, tuple) or len(storage.to) != 5:
        raise ValueError("its storage is not in it")
    kind, of, key = storage.to[:3]
    dtype = _dtype(of, STORAGES) if value.of == REBUILD else _dtype(value.arguments[6], NAMED_DTYPES)
    if (kind, key) != ("storage", "0") or dtype != chunk.dtype:
        raise ValueError(f"its numbers are not {chunk.dtype}")
    if first != 0 or sizes != chunk.sizes or not _are_whole(stride) or len(stride) != len(sizes):
        raise ValueError(f"its sizes are not {list(chunk.sizes)}")
    last = sum((size - 1) * step for size, step in zip(sizes, stride, strict=True))
    if math.prod(sizes) and last + 1 != math.prod(sizes):
        raise ValueError("it does not fill its storage")
    return stride


def _dtype(name: Any, table: dict[Name, torch.dtype]) -> torch.dtype | None:
    return table.get(name) if isinstance(name, Name) else None


def _are_whole(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)
