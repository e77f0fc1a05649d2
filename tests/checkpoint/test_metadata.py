"""torch's metadata are read without unpickling: the same as torch reads, and nothing that torch does not write."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from afm_scale.checkpoint.manifest import METADATA_NAME, read_manifest, resolve_checkpoint
from afm_scale.checkpoint.metadata import read_metadata
from afm_scale.checkpoint.pickled import Name, read_pickle
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.core.errors import CheckpointError

from .planting import OLD, Planted, copy_of, edit_metadata, plant_in_metadata, replace_file

LARGE = "generator.blocks.0.mlp.fc1.weight"


def first_place(metadata: Any) -> Any:
    """What is said of where LARGE lies."""
    return next(place for index, place in metadata.storage_data.items() if index.fqn == LARGE)


@pytest.mark.parametrize("name", ["afm", "classifier"])
def test_they_are_what_torch_reads(name: str) -> None:
    path = resolve_checkpoint(OLD / name)
    found, wanted = read_metadata(path, read_manifest(path)), dcp.FileSystemReader(path).read_metadata()
    assert found.state_dict_metadata == wanted.state_dict_metadata
    assert found.storage_data.keys() == wanted.storage_data.keys()
    for index, place in wanted.storage_data.items():
        chunk = found.storage_data[index]
        assert (chunk.file, chunk.offset, chunk.length) == (place.relative_path, place.offset, place.length)


def test_a_planted_object_is_refused_and_not_made(tmp_path: Path) -> None:
    checkpoint = copy_of("afm", tmp_path / "run")
    plant_in_metadata(checkpoint, tmp_path / "made")
    with pytest.raises(CheckpointError, match="names (posix|nt).mkdir, which no checkpoint of torch's needs"):
        read_tensors(checkpoint)
    assert not (tmp_path / "made").exists()


OUTSIDE = "a file that is not one of the checkpoint's"
EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a file outside of the folder": (
        lambda m: setattr(first_place(m), "relative_path", "../step_00000003/__0_0.distcp"), OUTSIDE
    ),
    "an absolute path": (lambda m: setattr(first_place(m), "relative_path", "/etc/passwd"), OUTSIDE),
    "the metadata themselves": (
        lambda m: setattr(first_place(m), "relative_path", METADATA_NAME), OUTSIDE
    ),
    "beyond the end": (lambda m: setattr(first_place(m), "offset", 10**6), "does not lie within"),
    "a negative place": (lambda m: setattr(first_place(m), "offset", -5), "whole numbers of at least 0"),
    "a place of text": (lambda m: setattr(first_place(m), "offset", "0"), "whole numbers of at least 0"),
    "too short": (lambda m: setattr(first_place(m), "length", 100), "does not lie within"),
    "transformed": (lambda m: setattr(first_place(m), "transform_descriptors", ["zstd"]), "was changed"),
    "a tensor that is bytes": (
        lambda m: m.state_dict_metadata.update({LARGE: BytesStorageMetadata()}), "BytesStorageMetadata, which no"
    ),
    "a tensor too few": (lambda m: m.state_dict_metadata.pop(LARGE), f"{LARGE} is in one of"),
    "a tensor too many": (
        lambda m: m.state_dict_metadata.update(x=m.state_dict_metadata[LARGE]), "x is in one of"
    ),
    "another size": (
        lambda m: setattr(m.state_dict_metadata[LARGE], "size", torch.Size([9**9, 8])), r"is not the \[32, 8\] float32"
    ),
    "another type": (
        lambda m: setattr(m.state_dict_metadata[LARGE].properties, "dtype", torch.float64), r"is not the \[32, 8\]"
    ),
    "no part": (lambda m: m.state_dict_metadata[LARGE].chunks.clear(), "do not make it up"),
    "a part outside": (
        lambda m: setattr(m.state_dict_metadata[LARGE].chunks[0], "offsets", torch.Size([1, 0])), "lies outside of it"
    ),
    "a part twice": (
        lambda m: m.state_dict_metadata[LARGE].chunks.append(m.state_dict_metadata[LARGE].chunks[0]),
        "do not make it up",
    ),
    "a part of two dimensions too few": (
        lambda m: setattr(m.state_dict_metadata[LARGE].chunks[0], "sizes", torch.Size([])), "lies outside of it"
    ),
    "a part that lies nowhere": (
        lambda m: m.storage_data.pop(next(index for index in m.storage_data if index.fqn == LARGE)), "lies nowhere"
    ),
    "no places": (lambda m: setattr(m, "storage_data", None), "storage_data is no mapping"),
    "no tensors": (lambda m: setattr(m, "state_dict_metadata", [1]), "state_dict_metadata is no mapping"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_metadata_that_cannot_be_are_refused_with_what_is_wrong(edit: str, tmp_path: Path) -> None:
    checkpoint = copy_of("flow_matching", tmp_path / "run")
    change, message = EDITS[edit]
    edit_metadata(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(checkpoint)


def test_parts_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    checkpoint = copy_of("flow_matching", tmp_path / "run")

    def edit(metadata: Any) -> None:
        (chunk,) = metadata.state_dict_metadata[LARGE].chunks
        halves = [replace(chunk, offsets=torch.Size([k, 0]), sizes=torch.Size([16, 8])) for k in (0, 8)]
        metadata.state_dict_metadata[LARGE].chunks = halves

    edit_metadata(checkpoint, edit)
    with pytest.raises(CheckpointError, match="lie over each other"):
        read_tensors(checkpoint)


NESTED = b"\x80\x04)" + b"\x94\x85" * 50_000  # tuples in tuples
BOMB = b"\x80\x04}" + b")\x94" + b"".join(b"h" + bytes([k]) * 1 + b"h" + bytes([k]) + b"\x86\x94" for k in range(90))


@pytest.mark.parametrize("content", [
    b"", b".", b"\x80\x04.", b"\x80", b"N", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    b"\x80\x04\x8c\x05torch\x8c\x04Size\x93}\x8c\x07__new__Nsb.",  # attributes for a class
    b"\x80\x04Nr\xff\xff\xff\xff.",  # a memo of 32 GB
    b"\x80\x04X\xff\xff\xff\xff.", b"\x80\x04\x8a\xff" + b"\1" * 255 + b".", b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    b"I" + b"9" * 10_000 + b"\n.", b"\x80\x04h\x07.", b"\x80\x04u.", b"\x80\x04e.", b"\x80\x04R.", b"\x80\x04b.",
    NESTED + b".", b"\x80\x04}" + NESTED[2:] + b"Ns.", BOMB + b"Ns.", b"(" * 100_000 + b".", b"]" * 100_000 + b".",
    b"\x80\x04\x8c\x02\xff\xff.", b"\x80\x04]\x94h\x00a.", pickle.dumps({"a": 1.5}), pickle.dumps(b"bytes" * 100),
    pickle.dumps(Planted(Path("made"))), pickle.dumps(Planted(Path("made")), protocol=0),
])
def test_hostile_pickles_are_refused_at_once(content: bytes, tmp_path: Path) -> None:
    checkpoint = copy_of("flow_matching", tmp_path / "run")
    replace_file(checkpoint, METADATA_NAME, content)
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
        read_tensors(checkpoint)
    assert time.perf_counter() - began < 5 and not Path("made").exists()


def test_flipped_and_cut_metadata_are_refused_or_say_the_same(tmp_path: Path) -> None:
    checkpoint = copy_of("flow_matching", tmp_path / "run")
    manifest, file = read_manifest(checkpoint), checkpoint / METADATA_NAME
    content, wanted = file.read_bytes(), read_metadata(checkpoint, manifest)
    refused = 0
    for place in range(0, len(content), 397):
        flipped = content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :]
        for changed in (flipped, content[:place]):
            file.write_bytes(changed)
            try:
                found = read_metadata(checkpoint, manifest)
            except CheckpointError:
                refused += 1
            else:  # in what this program does not use
                assert found.state_dict_metadata == wanted.state_dict_metadata
    assert refused > 60


def test_names_are_closed() -> None:
    content = b"\x80\x04\x8c\x05torch\x8c\x04Size\x93)R."
    assert read_pickle(content, {Name("torch", "Size")}).of == Name("torch", "Size")
    with pytest.raises(ValueError, match="torch.Size"):
        read_pickle(content, {Name("torch", "float32")})
