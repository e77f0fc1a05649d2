"""Writes what torch.load(weights_only=True) reads, one tensor after another: no more than one is in memory."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO

import torch

from ..stored import STORAGES
from .format import Lazy

_ALIGNMENT = 64  # of a tensor's bytes in the file, so that it can be mapped
_LONG_EXTRA = 20  # bytes that an archive's header has more for a member of any size
_LEGACY = {dtype: getattr(torch, name.name) for name, dtype in STORAGES.items()}  # the storage classes torch names


class _Storage:
    """Stands for the bytes of a tensor."""

    def __init__(self, lazy: Lazy, key: str) -> None:
        self.lazy, self.key = lazy, key


class _Pickler(pickle.Pickler):
    """Writes a `Lazy` as torch writes a tensor. It writes alone: nothing is read by this module."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: list[_Storage] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        entry = value.lazy.entry
        legacy = _LEGACY.get(entry.torch_dtype)
        count = entry.num_bytes // entry.torch_dtype.itemsize if legacy else entry.num_bytes
        return ("storage", legacy or torch.storage.UntypedStorage, value.key, "cpu", count)

    def tensor(self, lazy: Lazy) -> _Tensor:
        self.storages.append(_Storage(lazy, str(len(self.storages))))
        return _Tensor(self.storages[-1])


class _Tensor:
    """Reduces to torch's call that builds a tensor from its storage."""

    def __init__(self, storage: _Storage) -> None:
        self.storage = storage

    def __reduce__(self) -> tuple[Any, tuple]:
        entry = self.storage.lazy.entry
        stride = [1] * len(entry.shape)
        for i in range(len(stride) - 2, -1, -1):
            stride[i] = stride[i + 1] * max(entry.shape[i + 1], 1)
        arguments = (self.storage, 0, tuple(entry.shape), tuple(stride), False, OrderedDict())
        if entry.torch_dtype in _LEGACY:
            return torch._utils._rebuild_tensor_v2, arguments
        return torch._utils._rebuild_tensor_v3, (*arguments, entry.torch_dtype, None)


def write_torch(file: BinaryIO, content: Any, name: str = "archive") -> None:
    """Into a file that is open for writing and can be sought.

    Args:
        content: plain values, dicts, lists and tuples, with a `Lazy` where a tensor is to be.
        name: of the folder that all lies in, inside of the file.
    """
    about = io.BytesIO()
    pickler = _Pickler(about)
    pickler.dump(_with_tensors(content, pickler))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        small = {"data.pkl": about.getvalue(), "byteorder": sys.byteorder.encode(), "version": b"3\n"}
        for member, value in small.items():
            archive.writestr(_info(f"{name}/{member}", len(value)), value)
        for storage in pickler.storages:
            info = _info(f"{name}/data/{storage.key}", storage.lazy.entry.num_bytes)
            begins = file.tell() + 30 + len(info.filename) + _LONG_EXTRA + 4
            padding = -begins % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            with archive.open(info, "w", force_zip64=True) as member:
                tensor = storage.lazy.read()
                if tensor.numel():
                    member.write(memoryview(tensor.flatten().view(torch.uint8).numpy()))
                del tensor


def _info(name: str, num_bytes: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # of 1980: the same content is the same file
    info.file_size = num_bytes
    return info


def _with_tensors(value: Any, pickler: _Pickler) -> Any:
    if isinstance(value, Lazy):
        return pickler.tensor(value)
    if isinstance(value, dict):
        return type(value)((key, _with_tensors(inner, pickler)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_with_tensors(inner, pickler) for inner in value)
    return value
