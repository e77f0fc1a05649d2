"""A stored tensor is read without torch.load: what was saved, and nothing else."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from afm_scale.checkpoint.dtypes import DTYPES
from afm_scale.checkpoint.manifest import read_manifest
from afm_scale.checkpoint.metadata import Chunk, read_metadata
from afm_scale.checkpoint.stored import read_chunk
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.core.errors import CheckpointError

from .planting import Planted, copy_of

LARGE = "generator.blocks.0.mlp.fc1.weight"


def saved(tensor: Tensor) -> tuple[io.BytesIO, Chunk]:
    file = io.BytesIO(b"abc")
    file.seek(3)
    torch.save(tensor, file)
    return file, Chunk("x", 3, file.tell() - 3, tuple(tensor.shape), tensor.dtype)


@pytest.mark.parametrize("name", DTYPES)
def test_a_tensor_of_any_type_is_read_as_it_was_saved(name: str) -> None:
    numbers = torch.arange(24).remainder(7).to(DTYPES[name])
    for tensor in (numbers.reshape(4, 6), numbers.reshape(2, 3, 4).permute(2, 0, 1), numbers[3], numbers[:0]):
        found = read_chunk(*saved(tensor.clone()))
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(bits(found), bits(tensor))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def archive(
    about: bytes, numbers: bytes = bytes(48), order: bytes = b"little", method: int = zipfile.ZIP_STORED
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as members:
        for name, content in (("data.pkl", about), ("byteorder", order), ("data/0", numbers)):
            members.writestr(f"archive/{name}", content)
    return file.getvalue()


def about(tensor: object) -> bytes:
    """The data.pkl that torch writes."""
    file = io.BytesIO()
    torch.save(tensor, file)
    with zipfile.ZipFile(file) as members:
        return members.read("archive/data.pkl")


GOOD = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("content, message", [
    (b"PK", "no tensor of torch's"), (b"", "no tensor of torch's"), (bytes(500), "no tensor of torch's"),
    (pickle.dumps(Planted(Path("made"))), "no tensor of torch's"),
    (archive(pickle.dumps(Planted(Path("made")), protocol=2)), "mkdir, which no"),
    (archive(about(GOOD.double())), "its numbers are not torch.float32"), (archive(about([GOOD])), "no plain tensor"),
    (archive(about(GOOD.t())), "its sizes are not"), (archive(about(GOOD[:1].expand(3, 4))), "fill its storage"),
    (archive(about(torch.zeros(1).expand(3, 4))), "fill its storage"), (archive(about(GOOD[1:])), "its sizes are not"),
    (archive(about(torch.nn.Parameter(GOOD))), "_rebuild_parameter, which no"), (archive(about({"a": 1})), "no plain"),
    (archive(about(GOOD.to_sparse())), "_rebuild_sparse_tensor, which no"),
    (archive(about(GOOD), numbers=bytes(40)), "has 40 bytes, not the 48"),
    (archive(about(GOOD), method=zipfile.ZIP_DEFLATED), "has"),
    (archive(about(GOOD), order=b"big"), "bytes are in the order"),
    (archive(b"N" * 10_000), "has 10000 bytes"),
    (archive(about(GOOD)).replace(b"data/0", b"data/1"), "it has no data/0"),
    (archive(about(GOOD)).replace(bytes(48), b"\1" * 48), "are not those that were written"),
    (archive(about(GOOD)).replace(b"PK\3\4", b"PK\3\3"), "does not lie where"),
    (archive(about(GOOD)).replace(struct.pack("<I", 48), struct.pack("<I", 2**31)), "bytes, not the 48"),
])
def test_what_is_not_the_tensor_that_was_announced_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_chunk(io.BytesIO(content), Chunk("x", 0, len(content), (3, 4), torch.float32))
    assert not Path("made").exists()


def test_a_good_archive_of_another_program_is_read() -> None:
    content = archive(about(GOOD))
    assert torch.equal(read_chunk(io.BytesIO(content), Chunk("x", 0, len(content), (3, 4), GOOD.dtype)), GOOD * 0)


def test_a_flipped_byte_of_an_old_checkpoints_tensors_is_noticed(tmp_path: Path) -> None:
    checkpoint = copy_of("flow_matching", tmp_path / "run")
    path = checkpoint / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    chunks = read_metadata(checkpoint, read_manifest(checkpoint)).storage_data
    place = next(chunk for index, chunk in chunks.items() if index.fqn == LARGE)
    content[place.offset + 1000] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{LARGE} in __0_0.distcp: the bytes of its data/0 are not"):
        read_tensors(checkpoint)
