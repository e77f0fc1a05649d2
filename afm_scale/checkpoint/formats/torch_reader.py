"""A file of torch.save read without torch.load: what lies in it as plain values, its tensors where they lie.

It is a ZIP archive, not compressed: `data.pkl` says what there is, `data/N` are the bytes of its storages. Nothing in
it is unpickled: what it may name is a closed list, each name admitted for a reason, and none of them is ever called.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ...core.files import open_regular
from ..manifest import TensorEntry
from ..pickled import Entries, Made, Name, Reference, read_pickle
from ..stored import HOOKS, NAMED_DTYPES, REBUILD, REBUILD_TYPED, STORAGES, UNTYPED, Archive
from .format import Lazy

_ORDERED = HOOKS  # collections.OrderedDict: of a state dict too
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_SIZE, _DEVICE = Name("torch", "Size"), Name("torch", "device")
_NAMESPACE = Name("argparse", "Namespace")
_ENCODED = Name("_codecs", "encode")
_SCALARS = {Name(module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
_NUMPY_DTYPE = Name("numpy", "dtype")

ADMITTED: Mapping[Name, str] = {
    **dict.fromkeys([REBUILD, REBUILD_TYPED, UNTYPED, *NAMED_DTYPES, *STORAGES], "a tensor and its numbers"),
    _PARAMETER: "a tensor that was a parameter",
    _ORDERED: "a state dict",
    _SIZE: "a shape among plain values",
    _DEVICE: "where a tensor was; read as its name",
    _NAMESPACE: "the command line a training run was started with; read as a mapping of its plain values",
    **dict.fromkeys([_ENCODED, _NUMPY_DTYPE, *_SCALARS], "a number that numpy made, such as a best loss or a step"),
}
"""What a file of torch's may name, and what for. A format that holds more says so when it opens a file."""

_MOST_BYTES = 2**28  # of data.pkl
_MOST_LEVELS = 50
_NUMBERS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H",
    "u1": "B", "b1": "?",
}


def begins_as_torch(path: Path) -> bool:
    """Whether the first bytes of a file are those of an archive or a pickle. Raises CheckpointError as `TorchFile`.
    """
    try:
        with open_regular(path) as file:
            return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; name another file") from error


class TorchFile:
    """A file that is open. `content` is what torch.load would return, of plain dicts, lists, tuples, texts and numbers,
    with a `Lazy` for every tensor, and a `Made` record for what else `names` admitted."""

    def __init__(self, path: Path, names: Collection[Name] = ()) -> None:
        """Raises CheckpointError if it is no such file, or names what is not admitted."""
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; name another file") from error
        try:
            self._archive = self._open()
            value = read_pickle(
                self._archive.small("data.pkl", _MOST_BYTES), {*ADMITTED, *names}, mappings={_ORDERED}
            )
            self.content = _Plain(self).of(value)
        except (ValueError, OSError) as error:
            self._file.close()
            raise CheckpointError(
                f"{path} is no file of torch's that this program reads: {str(error):.300}. Nothing in it was run; "
                "name another file, or load and save it with a program that you trust"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()

    def _open(self) -> Archive:
        begins = self._file.read(4)
        if begins[:1] == b"\x80":
            raise ValueError("it is a pickle alone, such as torch wrote before 1.6, which is not read")
        if begins != b"PK\3\4":
            raise ValueError("it does not begin as one")
        archive = Archive(self._file, 0, os.fstat(self._file.fileno()).st_size)
        order = archive.small("byteorder") if "byteorder" in archive else b"little"
        if order != sys.byteorder.encode():
            raise ValueError(f"its bytes are in the order {order[:20]!r}, this machine's are {sys.byteorder}")
        return archive

    def lazy(self, made: Made) -> Lazy:
        """The tensor of a `_rebuild_tensor` record. Raises ValueError if it does not lie within its storage."""
        dtype, key, first, sizes, stride = _described(made)
        name = f"data/{key}"
        span = 1 + sum((size - 1) * step for size, step in zip(sizes, stride, strict=True)) if math.prod(sizes) else 0
        there = self._archive.size(name) // dtype.itemsize
        if first + span > there or math.prod(sizes) > there:
            raise ValueError(f"a tensor of {list(sizes)} does not lie within the {there} numbers of {name}")

        def read() -> Tensor:
            raw = torch.empty(span * dtype.itemsize, dtype=torch.uint8)
            try:
                if span and span == there and not first:
                    self._archive.read_into(memoryview(raw.numpy()), name)  # with its check sum
                elif span:
                    self._archive.read_part_into(memoryview(raw.numpy()), name, first * dtype.itemsize)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{self.path} is damaged: {error}; use another copy of it") from error
            return raw.view(dtype).as_strided(sizes, stride).contiguous()

        return Lazy(TensorEntry(sizes, str(dtype).removeprefix("torch.")), read)


class _Plain:
    """Records become what they stand for; each is looked at once, however often the file refers to it."""

    def __init__(self, file: TorchFile) -> None:
        self._file = file
        self._known: dict[int, Any] = {}

    def of(self, value: Any, level: int = 0) -> Any:
        if level > _MOST_LEVELS:
            raise ValueError("its values lie too deep in one another")
        if not isinstance(value, (dict, list, tuple, Made)):
            return value
        if id(value) not in self._known:
            self._known[id(value)] = None  # a value that holds itself holds nothing there
            self._known[id(value)] = self._translated(value, level + 1)
        return self._known[id(value)]

    def _translated(self, value: Any, level: int) -> Any:
        if isinstance(value, dict):
            kind = Entries if isinstance(value, Entries) else dict
            return kind((key, self.of(inner, level)) for key, inner in value.items())
        if isinstance(value, (list, tuple)):
            return type(value)([self.of(inner, level) for inner in value]) if type(value) in (list, tuple) else value
        return self._made(value, level)

    def _made(self, made: Made, level: int) -> Any:
        of, arguments = made.of, made.arguments
        if of in (REBUILD, REBUILD_TYPED):
            return self._file.lazy(made)
        if of == _PARAMETER and arguments:
            return self.of(arguments[0], level)
        if of == _SIZE and len(arguments) == 1:
            return self.of(arguments[0], level)
        if of == _NAMESPACE and not arguments and isinstance(made.state, dict):
            return self.of(made.state, level)
        if of == _DEVICE and arguments:
            return str(arguments[0])
        if of in _SCALARS:
            return _number(*arguments)
        return made


def _described(made: Made) -> tuple[torch.dtype, str, int, tuple[int, ...], tuple[int, ...]]:
    """dtype, key of the storage, first number in it, sizes, strides."""
    arguments = made.arguments
    if len(arguments) < 4 or made.state is not None:
        raise ValueError("a tensor lacks its sizes")
    storage, first, sizes, stride = arguments[:4]
    sizes = sizes.arguments[0] if isinstance(sizes, Made) and sizes.of == _SIZE and sizes.arguments else sizes
    if not isinstance(storage, Reference) or not isinstance(storage.to, tuple) or len(storage.to) != 5:
        raise ValueError("a tensor's storage is not in the file")
    kind, of, key = storage.to[:3]
    if made.of == REBUILD:
        dtype = STORAGES.get(of) if isinstance(of, Name) else None
    else:
        named = arguments[6] if len(arguments) > 6 else None
        dtype = NAMED_DTYPES.get(named) if isinstance(named, Name) else None
    if kind != "storage" or not isinstance(key, str) or not key.isalnum() or dtype is None:
        raise ValueError("a tensor is of a type that this program does not know")
    for values in ((first,), sizes, stride):
        if not isinstance(values, tuple) or not all(type(value) is int and 0 <= value < 2**53 for value in values):
            raise ValueError("a tensor's sizes are no whole numbers")
    if len(sizes) != len(stride):
        raise ValueError("a tensor's sizes and strides are of two kinds")
    return dtype, key, first, sizes, stride


def _number(*arguments: Any) -> int | float | bool:
    """Of a numpy scalar: its dtype, and its bytes written as text."""
    kind, content = arguments if len(arguments) == 2 else (None, None)
    name = kind.arguments[0] if isinstance(kind, Made) and kind.of == _NUMPY_DTYPE and kind.arguments else None
    form = _NUMBERS.get(name) if isinstance(name, str) else None
    text = content.arguments[0] if isinstance(content, Made) and content.of == _ENCODED and content.arguments else None
    if form is None or not isinstance(text, str):
        raise ValueError("a number of numpy's is of a type that this program does not know")
    try:
        (value,) = struct.unpack(f"<{form}", text.encode("latin1"))
    except (struct.error, UnicodeEncodeError) as error:
        raise ValueError(f"a number of numpy's is none: {error}") from error
    return value
