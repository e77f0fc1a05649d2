"""Tars and zips of image folders, read where they lie: no member is ever extracted under its own name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from ..core.errors import DataError
from ..core.files import open_regular, require_regular, write_atomically
from ..data.description import Refused
from ..data.transforms import ImageError
from .originals import Found, Listing, Original, changed, listing, refuse_path

_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_BLOCK_BYTES = 1 << 20


class SpanReader:
    """Originals that lie in one file: `Original.place` is the byte where one starts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def __reduce__(self) -> tuple:
        return SpanReader, (self._path,)

    def read(self, original: Original) -> bytes:
        try:
            if self._file is None:
                self._file = open_regular(self._path)
            data = os.pread(self._file.fileno(), original.size, original.place)
        except OSError as error:
            raise changed(self._path, error.strerror or str(error)) from None
        if len(data) != original.size:
            raise changed(self._path, f"ends within {original.name!r}")
        return data


class ZipReader:
    """Members of a zip: `Original.place` counts them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip: zipfile.ZipFile | None = None

    def __reduce__(self) -> tuple:
        return ZipReader, (self._path,)

    def read(self, original: Original) -> bytes:
        try:
            if self._zip is None:
                require_regular(self._path)
                self._zip = zipfile.ZipFile(self._path)  # which closes the file when it goes
            with self._zip.open(self._zip.infolist()[original.place]) as member:
                data = member.read(original.size + 1)
        except FileNotFoundError as error:
            raise changed(self._path, error.strerror) from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError) as error:
            raise ImageError(f"cannot be unpacked from the zip: {error}") from None
        if len(data) != original.size:
            raise ImageError(f"cannot be unpacked from the zip: {len(data)} bytes, {original.size} were announced")
        return data


def list_tar(path: Path) -> Listing:
    """The members of an uncompressed tar. Raises DataError if it is not one, is damaged, or is cut short."""
    found: list[Found] = []
    refused: list[Refused] = []
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:", errorlevel=1) as tar:
            for member in tar:
                if reason := refuse_path(member.name) or _not_a_tar_file(member):
                    refused.append(Refused(name=member.name, reason=reason))
                elif not member.isdir():
                    found.append(Found(name=member.name, size=member.size, place=member.offset_data))
            end = tar.offset
        _check_end(path, end)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not a whole tar file: {error}; get it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return listing(found, refused, SpanReader(path))


def _not_a_tar_file(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return "is a link"
    if not (member.isreg() or member.isdir()):
        return "is a device, a pipe or of an unknown kind"
    return "is a sparse file" if member.issparse() else None


def _check_end(path: Path, end: int) -> None:
    """tarfile takes a damaged header for the end of the tar; the end itself is zeros."""
    with open_regular(path) as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut short, the blocks of zeros at its end are missing")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {end} is damaged")


def list_zip(path: Path) -> Listing:
    """Raises DataError if it is not a zip, or its directory is damaged."""
    found: list[Found] = []
    refused: list[Refused] = []
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is not a whole zip file: {error}; get it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    for number, member in enumerate(members):
        if reason := refuse_path(member.filename) or _not_a_zip_file(member):
            refused.append(Refused(name=member.filename, reason=reason))
        elif not member.is_dir():
            found.append(Found(name=member.filename, size=member.file_size, place=number))
    return listing(found, refused, ZipReader(path))


def _not_a_zip_file(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a device, a pipe or of an unknown kind"
    return "is encrypted" if member.flag_bits & 1 else None


def compression(path: Path) -> Callable[..., BinaryIO] | None:
    """What opens a compressed file, by its first bytes. Raises DataError if it cannot be read."""
    try:
        with open_regular(path) as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)


def scratch_path(source: Path, scratch: Path, suffix: str) -> Path:
    """Where the plain form of a source is kept while it is packed: named after the source's size and time."""
    status = source.stat()
    about = f"{source.name} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape")
    return scratch / f"source-{sha256(about).hexdigest()[:16]}{suffix}"


def spool(source: Path, opener: Callable[..., BinaryIO], scratch: Path) -> Path:
    """The uncompressed form of a file, in the scratch folder, made once. Raises DataError if it is damaged."""
    plain = scratch_path(source, scratch, ".tar")
    if plain.exists():
        return plain

    def unpack(target: BinaryIO) -> None:
        with open_regular(source) as file, opener(file, "rb") as packed:
            while block := _unpack(source, packed):
                target.write(block)

    write_atomically(plain, unpack)
    return plain


def _unpack(source: Path, packed: BinaryIO) -> bytes:
    try:
        return packed.read(_BLOCK_BYTES)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{source} cannot be unpacked: {error}; get it again") from None
