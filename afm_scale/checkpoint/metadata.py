"""Where the tensors of a checkpoint lie: torch's `.metadata`, read without unpickling and held to the manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ..core.errors import TornError
from ..core.files import read_regular
from .dtypes import DTYPES
from .manifest import METADATA_NAME, Manifest, TensorEntry, damaged
from .pickled import Made, Name, read_pickle


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor as it lies in one of the files: between two bytes of it, in torch's format."""

    file: str
    offset: int
    length: int
    sizes: tuple[int, ...]
    dtype: torch.dtype


_OF_TORCH = "torch.distributed.checkpoint.metadata"
_METADATA, _TENSOR, _PROPERTIES, _CHUNK, _INDEX, _MEMORY_FORMAT, _STORAGE_META = (
    Name(_OF_TORCH, name) for name in (
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex",
        "_MEM_FORMAT_ENCODING", "StorageMeta",
    )
)
_STORED = Name("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_SIZE, _LAYOUT = Name("torch", "Size"), Name("torch.serialization", "_get_layout")
_PATHS = {Name(module, "PosixPath") for module in ("pathlib", "pathlib._local")}  # of the folder it was written to
_DTYPES = {Name("torch", name): name for name in DTYPES}
_NAMES = {
    _METADATA, _TENSOR, _PROPERTIES, _CHUNK, _INDEX, _MEMORY_FORMAT, _STORAGE_META, _STORED, _SIZE, _LAYOUT, *_PATHS,
    *_DTYPES,
}
_MOST_BYTES = 2**30
_MOST_BYTES_OF_A_CHUNK = 4096  # a thousand letters of its tensor's name among them


def read_metadata(path: Path, manifest: Manifest) -> Metadata:
    """Of a complete checkpoint, whose manifest is `manifest`: what `dcp.load` asks for, with a `Chunk` of every part
    as its storage data.

    Raises TornError unless it is what torch writes of exactly the manifest's tensors, each of them stored whole
    and once, within the manifest's files.
    """
    file = path / METADATA_NAME
    if METADATA_NAME not in manifest.files:
        raise TornError(f"{path} is damaged: its manifest lists no {METADATA_NAME}; use an older checkpoint")
    limit = min(_MOST_BYTES, 2**16 + _MOST_BYTES_OF_A_CHUNK * len(manifest.tensors) * len(manifest.files))
    try:
        return _translated(read_pickle(read_regular(file, limit), _NAMES), manifest)
    except OSError as error:
        raise TornError(f"{file} cannot be read: {error.strerror or error}; use an older checkpoint") from error
    except ValueError as error:
        raise damaged(file, error) from error


def _translated(value: Any, manifest: Manifest) -> Metadata:
    state = _state(value, _METADATA, "state_dict_metadata", "storage_data")
    tensors, stored = (_mapping(state[name], name) for name in ("state_dict_metadata", "storage_data"))
    if tensors.keys() != manifest.tensors.keys():
        name = min(tensors.keys() ^ manifest.tensors.keys(), key=str)
        raise ValueError(f"{str(name):.80} is in one of the metadata and the manifest")
    places = _places(stored)
    known, chunks = {}, {}
    for name, entry in manifest.tensors.items():
        known[name] = _tensor(name, tensors[name], entry)
        for chunk in known[name].chunks:
            place = places.pop((name, tuple(chunk.offsets)), None)
            if place is None:
                raise ValueError(f"a part of {name:.80} lies nowhere")
            chunks[MetadataIndex(name, chunk.offsets)] = _chunk(name, place, chunk, entry, manifest)
    if places:
        raise ValueError(f"{min(places)[0]:.80} has more parts than it needs")
    return Metadata(state_dict_metadata=known, storage_data=chunks)


def _places(stored: Mapping[Any, Any]) -> dict[tuple[str, tuple[int, ...]], Mapping[str, Any]]:
    places = {}
    for index, value in stored.items():
        key = _state(index, _INDEX, "fqn", "offset")
        name, offset = key["fqn"], _size(key["offset"])
        if not isinstance(name, str) or (name, offset) in places:
            raise ValueError("a part of a tensor lies at two places, or has no name")
        places[name, offset] = _state(value, _STORED, "relative_path", "offset", "length")
    return places


def _tensor(name: str, value: Any, entry: TensorEntry) -> TensorStorageMetadata:
    state = _state(value, _TENSOR, "properties", "size", "chunks")
    properties = state["properties"]
    if not isinstance(properties, Made) or properties.of != _PROPERTIES or not isinstance(properties.state, tuple):
        raise ValueError(f"{name:.80} has no properties")
    dtype = _DTYPES.get(properties.state[0]) if isinstance(properties.state[0], Name) else None
    if _size(state["size"]) != entry.shape or dtype != entry.dtype:
        raise ValueError(f"{name:.80} is not the {entry} of the manifest")
    if not isinstance(state["chunks"], list):
        raise ValueError(f"{name:.80} has no list of parts")
    parts = [_state(part, _CHUNK, "offsets", "sizes") for part in state["chunks"]]
    boxes = [(_size(part["offsets"]), _size(part["sizes"])) for part in parts]
    _require_whole(name, boxes, entry.shape)
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=entry.torch_dtype), size=torch.Size(entry.shape),
        chunks=[ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes],
    )


Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


def _require_whole(name: str, boxes: list[Box], shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the boxes fill the shape, each element once."""
    for offsets, sizes in boxes:
        inside = len(offsets) == len(sizes) == len(shape) and all(
            offset + size <= whole for offset, size, whole in zip(offsets, sizes, shape, strict=True)
        )
        if not inside:
            raise ValueError(f"a part of {name:.80} lies outside of it")
    if sum(math.prod(sizes) for _, sizes in boxes) != math.prod(shape):
        raise ValueError(f"the parts of {name:.80} do not make it up")
    begun: list[Box] = []  # those that reach to where the next one begins, in the first dimension
    for box in sorted(boxes) if shape else ():
        begun = [other for other in begun if other[0][0] + other[1][0] > box[0][0]]
        if any(_overlap(box, other) for other in begun):
            raise ValueError(f"the parts of {name:.80} lie over each other")
        begun.append(box)


def _overlap(one: Box, other: Box) -> bool:
    return all(
        a < b + size_b and b < a + size_a for a, size_a, b, size_b in zip(*one, *other, strict=True)
    )


def _chunk(
    name: str, place: Mapping[str, Any], chunk: ChunkStorageMetadata, entry: TensorEntry, manifest: Manifest
) -> Chunk:
    file, offset, length = place["relative_path"], place["offset"], place["length"]
    if place.get("transform_descriptors"):
        raise ValueError(f"{name:.80} was changed when it was written, which this program does not do")
    if not isinstance(file, str) or file == METADATA_NAME or file not in manifest.files:
        raise ValueError(f"{name:.80} lies in a file that is not one of the checkpoint's")
    (offset, length), sizes = _whole((offset, length)), tuple(chunk.sizes)
    least = math.prod(sizes) * entry.torch_dtype.itemsize
    if offset + length > manifest.files[file] or length < least:
        raise ValueError(f"{name:.80} does not lie within {file}")
    return Chunk(file, offset, length, sizes, entry.torch_dtype)


def _state(value: Any, of: Name, *needed: str) -> Mapping[str, Any]:
    """The attributes of a record."""
    if not isinstance(value, Made) or value.of != of or not isinstance(value.state, dict):
        raise ValueError(f"something else lies where a {of.name} was wanted")
    if missing := [name for name in needed if name not in value.state]:
        raise ValueError(f"a {of.name} has no {missing[0]}")
    return value.state


def _mapping(value: Any, name: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"its {name} is no mapping")
    return value


def _size(value: Any) -> tuple[int, ...]:
    if not isinstance(value, Made) or value.of != _SIZE or len(value.arguments) > 1:
        raise ValueError("something else lies where a size was wanted")
    return _whole(value.arguments[0] if value.arguments else ())


def _whole(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("a size is no list of whole numbers of at least 0")
    return values
