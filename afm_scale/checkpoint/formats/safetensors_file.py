"""The safetensors container: eight bytes of length, a JSON header, then the tensors' bytes. Read and written one tensor
at a time; it holds nothing that could be run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ...core.files import open_regular
from ...core.strict_json import parse_json
from ..manifest import TensorEntry
from .format import Lazy

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16",
    "bfloat16": "BF16", "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
}
_DTYPES = {theirs: ours for ours, theirs in _NAMES.items()}
_MOST_BYTES_ABOUT = 10**8  # of the header, as the format's own reader has it


class SafetensorsFile:
    """A file that is open: its tensors by name, none of them read, and its metadata, texts by name."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError if it is none, or not whole."""
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; name another file") from error
        try:
            self.tensors, self.metadata = self._look()
        except (ValueError, OSError) as error:
            self._file.close()
            raise CheckpointError(
                f"{path} is no whole safetensors file: {str(error):.300}; use another copy of it"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()

    def _look(self) -> tuple[dict[str, Lazy], dict[str, str]]:
        there = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if there < 8 or length > min(there - 8, _MOST_BYTES_ABOUT):
            raise ValueError(f"its header is said to have {length:,} bytes, the file has {there:,}")
        header = parse_json(self._file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no mapping")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no texts")
        begins, tensors, spans = 8 + length, {}, []
        for name, described in header.items():
            entry, first, last = _described(name, described)
            tensors[name] = Lazy(entry, self._reader(name, entry, begins + first))
            spans.append((first, last))
        ends = 0
        for first, last in sorted(spans):
            if first != ends:
                raise ValueError("its tensors overlap, or leave holes")
            ends = last
        if begins + ends != there:
            raise ValueError(f"its tensors end at byte {begins + ends:,}, the file at {there:,}")
        return tensors, metadata

    def _reader(self, name: str, entry: TensorEntry, begins: int) -> Any:
        def read() -> Tensor:
            raw = torch.empty(entry.num_bytes, dtype=torch.uint8)
            self._file.seek(begins)
            if entry.num_bytes and self._file.readinto(memoryview(raw.numpy())) != entry.num_bytes:
                raise CheckpointError(f"{self.path} was cut off at {name:.80}; use another copy of it")
            return raw.view(entry.torch_dtype).view(entry.shape)

        return read


def _described(name: str, described: Any) -> tuple[TensorEntry, int, int]:
    """Shape, dtype and place, of a tensor of the header."""
    if not isinstance(described, dict) or described.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name:.80} has no dtype, shape and place")
    kind, shape, place = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"{name:.80} is of a type that this program does not know: {str(kind):.40}")
    for values in (shape, place):
        if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**53 for value in values):
            raise ValueError(f"{name:.80} has sizes that are no whole numbers")
    entry = TensorEntry(tuple(shape), _DTYPES[kind])
    if len(place) != 2 or place[1] - place[0] != entry.num_bytes:
        raise ValueError(f"{name:.80} of {list(shape)} does not have the bytes that it is said to have")
    return entry, place[0], place[1]


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Lazy], metadata: Mapping[str, str]) -> None:
    """From the beginning of an open file to its end, tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    ends = 0
    for name, lazy in tensors.items():
        entry = lazy.entry
        header[name] = {
            "dtype": _NAMES[entry.dtype], "shape": list(entry.shape),
            "data_offsets": [ends, ends := ends + entry.num_bytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for lazy in tensors.values():
        tensor = lazy.read()
        if tensor.numel():
            file.write(memoryview(tensor.flatten().view(torch.uint8).numpy()))
        del tensor


def cannot_hold(tensors: Mapping[str, Lazy]) -> str | None:
    """The first tensor whose type the format does not know; None if it knows all."""
    unknown = (f"{name} is of {lazy.entry.dtype}" for name, lazy in tensors.items() if lazy.entry.dtype not in _NAMES)
    return next(unknown, None)


