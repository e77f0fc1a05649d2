"""Which kind a file is, by its first bytes, and the plain form of a compressed one: every byte of it is accounted for.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import DataError
from ..core.files import open_regular, write_atomically

_BLOCK_BYTES = 1 << 20
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31), "bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor,
}
_READ = [(b"PK\3\4", "zip"), (b"PK\5\6", "zip"), (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"PAR1", "parquet")]
_BZIP2 = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # behind BZh and a digit: a block, or the end of an empty file
_NOT_READ = [
    (b"7z\xbc\xaf\x27\x1c", "7z archive"), (b"Rar!\x1a\x07", "RAR archive"), (b"\x28\xb5\x2f\xfd", "Zstandard file"),
    (b"\x04\x22\x4d\x18", "LZ4 file"), (b"LZIP\1", "lzip file"), (b"\x1f\x9d", "file of compress"),
    (b"]\0\0", "LZMA file"), (b"070701", "cpio archive"), (b"!<arch>", "ar archive"), (b"\x89HDF", "HDF5 file"),
    (b"ARROW1", "Arrow file"), (b"PK\7\x08", "part of a split zip"), (b"MZ", "program (which may unpack itself)"),
    (b"\x93NUMPY", "NumPy array"), (b"\x89PNG", "PNG image"), (b"\xff\xd8\xff", "JPEG image"), (b"%PDF", "PDF"),
]


def kind_of(path: Path) -> str:
    """zip, gzip, bzip2, xz, parquet or tar. Raises DataError for another known kind, or if it cannot be read."""
    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    kind = next((kind for magic, kind in _READ if start.startswith(magic)), None)
    if kind is not None:
        return kind
    if start[257:262] == b"ustar":  # before the others: a tar begins with the name of its first member, any letters
        return "tar"
    if start.startswith(b"BZh") and start[4:].startswith(_BZIP2):
        return "bzip2"
    other = next((kind for magic, kind in _NOT_READ if start.startswith(magic)), None)
    if other is not None:
        raise DataError(
            f"{path} is a {other}, which is not read; wanted a folder, a tar (also in gzip, bzip2 or xz), a zip or a "
            "parquet file of images: unpack it, and pack the folder"
        )
    return "tar"  # as they were before they had a mark; anything else is found to be none


def scratch_path(source: Path, scratch: Path, suffix: str) -> Path:
    """Where the plain form of a source is kept while it is packed: named after the source's size and time."""
    status = source.stat()
    about = f"{source.name} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape")
    return scratch / f"source-{sha256(about).hexdigest()[:16]}{suffix}"


def spool(source: Path, kind: str, scratch: Path) -> Path:
    """The uncompressed form of a file, in the scratch folder, made once. Raises DataError if it is damaged."""
    plain = scratch_path(source, scratch, ".tar")
    if plain.exists():
        return plain

    def unpack(target: BinaryIO) -> None:
        with open_regular(source) as file:
            for block in _unpacked(source, file, _DECOMPRESSORS[kind]):
                target.write(block)

    write_atomically(plain, unpack)
    return plain


def _unpacked(source: Path, file: BinaryIO, make: Callable[[], Any]) -> Iterator[bytes]:
    """Of one compressed stream after another; only zeros may follow them."""
    def bad(reason: object) -> DataError:
        return DataError(f"{source} cannot be unpacked: {reason}; get it again")

    stream, begun = make(), False
    try:
        while block := file.read(_BLOCK_BYTES):
            while block:
                if not begun and not (block := block.lstrip(b"\0")):
                    break
                begun = True
                yield stream.decompress(block)
                block = b""
                if stream.eof:
                    block, stream, begun = stream.unused_data, make(), False
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise bad(f"at byte {file.tell()} or before: {error}") from None
    if begun:
        raise bad("it is cut short")
