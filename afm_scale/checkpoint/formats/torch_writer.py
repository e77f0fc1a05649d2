"""Writes what torch.load(weights_only=True) reads, one tensor after another: no more than one is in memory."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..manifest import TensorEntry
from ..pickled import Entries, Made, Reference
from ..pickling import write_pickle
from ..stored import NAMED_DTYPES, REBUILD, REBUILD_TYPED, STORAGES, UNTYPED
from .format import Lazy

_PIECE_BYTES = 2**22
_ALIGNMENT = 64  # of a tensor's bytes in the file, so that it can be mapped
_LONG_EXTRA = 20  # bytes that an archive's header has more for a member of any size
_LEGACY = {dtype: name for name, dtype in STORAGES.items()}  # torch's classes of storages, by their names
_TYPED = {dtype: name for name, dtype in NAMED_DTYPES.items()}


class Pieces(NamedTuple):
    """A tensor that is made of others, end to end, of which no more than one is in memory."""

    entry: TensorEntry
    pieces: Callable[[], Iterator[Tensor]]


@dataclass
class _Storages:
    """The tensors that have been met, in the order of their keys."""

    found: list[Lazy | Pieces] = field(default_factory=list)

    def tensor(self, lazy: Lazy | Pieces) -> Made:
        """torch's call that builds a tensor from its storage."""
        entry, key = lazy.entry, str(len(self.found))
        self.found.append(lazy)
        stride = [1] * len(entry.shape)
        for i in range(len(stride) - 2, -1, -1):
            stride[i] = stride[i + 1] * max(entry.shape[i + 1], 1)
        legacy = _LEGACY.get(entry.torch_dtype)
        count = entry.num_bytes // entry.torch_dtype.itemsize if legacy else entry.num_bytes
        storage = Reference(("storage", legacy or UNTYPED, key, "cpu", count))
        arguments = (storage, 0, tuple(entry.shape), tuple(stride), False, Entries())
        if legacy:
            return Made(REBUILD, arguments)
        return Made(REBUILD_TYPED, (*arguments, _TYPED[entry.torch_dtype], None))

    def with_tensors(self, value: Any) -> Any:
        """The content with `Made` records in the place of tensors."""
        if isinstance(value, (Lazy, Pieces)):
            return self.tensor(value)
        if isinstance(value, dict):
            kind = Entries if isinstance(value, (Entries, OrderedDict)) else dict
            return kind((key, self.with_tensors(inner)) for key, inner in value.items())
        if type(value) in (list, tuple):
            return type(value)(self.with_tensors(inner) for inner in value)
        return value


def write_torch(file: BinaryIO, content: Any, name: str = "archive") -> None:
    """Into a file that is open for writing and can be sought.

    Args:
        content: plain values, dicts, lists and tuples, with a `Lazy` where a tensor is to be; `Made` records of
            whatever the reader is to make.
        name: of the folder that all lies in, inside of the file.
    """
    storages = _Storages()
    about = write_pickle(storages.with_tensors(content))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        small = {"data.pkl": about, "byteorder": sys.byteorder.encode(), "version": b"3\n"}
        for member, value in small.items():
            archive.writestr(_info(f"{name}/{member}", len(value)), value)
        for key, lazy in enumerate(storages.found):
            info = _info(f"{name}/data/{key}", lazy.entry.num_bytes)
            begins = file.tell() + 30 + len(info.filename) + _LONG_EXTRA + 4
            padding = -begins % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            _add(archive, file, info, lazy.pieces() if isinstance(lazy, Pieces) else (lazy.read() for _ in range(1)))


def _add(archive: zipfile.ZipFile, file: BinaryIO, info: zipfile.ZipInfo, tensors: Iterator[Tensor]) -> None:
    """What `archive.writestr` does, of tensors end to end, with the check sum taken in a thread beside the disk."""
    info.header_offset, info.compress_size, info.CRC = file.tell(), info.file_size, 0
    file.write(info.FileHeader(zip64=True))
    with ThreadPoolExecutor(1) as beside:
        for tensor in tensors:
            if tensor.numel():
                content = memoryview(tensor.flatten().view(torch.uint8).numpy())
                summed = beside.submit(_crc32, content, info.CRC)
                for start in range(0, len(content), _PIECE_BYTES):
                    file.write(content[start:start + _PIECE_BYTES])
                info.CRC = summed.result()
                del content, summed
            del tensor
    ends = file.tell()
    file.seek(info.header_offset)
    file.write(info.FileHeader(zip64=True))  # with the sum
    file.seek(ends)
    archive.filelist.append(info)
    archive.NameToInfo[info.filename] = info
    archive.start_dir = ends


def _crc32(content: memoryview, value: int) -> int:
    for start in range(0, len(content), _PIECE_BYTES):
        value = zlib.crc32(content[start:start + _PIECE_BYTES], value)
    return value


def _info(name: str, num_bytes: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # of 1980: the same content is the same file
    info.file_size = num_bytes
    return info
