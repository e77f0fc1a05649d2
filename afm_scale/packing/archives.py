"""Tars and zips of image folders, read where they lie: no member is ever extracted under its own name.

Which kind a file is, its first bytes say. What follows is read or refused to its last byte, and every member is listed.
"""

from __future__ import annotations

import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from ..core.errors import DataError
from ..core.files import open_regular, require_regular
from ..data.description import Refused
from ..data.transforms import ImageError
from .classes import Layout
from .naming import refuse_path, why_ignored
from .originals import Found, Listing, Original, changed, listing

_BLOCK_BYTES = 1 << 20
_END_OF_ZIP = b"PK\5\6"
_LONGEST_END = 22 + 65_535  # bytes: the record, and a comment
_UTF8_FLAG, _ENCRYPTED_FLAG, _DESCRIPTOR_FLAG = 0x800, 1, 8
_LONGEST_DESCRIPTOR = 24
_UNICODE_PATH = 0x7075  # an extra field of Info-ZIP
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_BAD_ZIP = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error)


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


def list_tar(path: Path, layout: Layout | None = None) -> Listing:
    """The members of an uncompressed tar. Raises DataError if it is not one, is damaged, or is cut short."""
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:", errorlevel=1) as tar:
            members = list(tar)
            end = tar.offset
        _check_end(path, end)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not a whole tar file: {error}; get it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    # Only where no name has a slash can backslashes have been meant as such: otherwise they are letters.
    windows = not any("/" in member.name for member in members)
    found: list[Found] = []
    refused: list[Refused] = []
    folders: list[str] = []
    held: dict[str, tuple[int, int]] = {}  # size and place, of what hard links may name
    for member in members:
        name = member.name.replace("\\", "/") if windows else member.name
        span: tuple[int, int] | None = (member.size, member.offset_data)
        reason = refuse_path(member.name) or _not_a_tar_file(member)
        if reason is None and member.islnk():
            span = held.get(posixpath.normpath(member.linkname.replace("\\", "/") if windows else member.linkname))
            reason = None if span else "is a link to what the tar does not hold before it"
        if reason is not None:
            refused.append(Refused(name=name, reason=reason))
        elif member.isdir():
            folders.append(name)
        else:
            held[posixpath.normpath(name)] = span
            found.append(Found(name=name, size=span[0], place=span[1]))
    return listing(
        found, refused, SpanReader(path), folders=folders, notes=_of_separators(windows and "/" in str(found[:1])),
        layout=layout,
    )


def _not_a_tar_file(member: tarfile.TarInfo) -> str | None:
    if member.issym():
        return "is a link"
    if not (member.isreg() or member.isdir() or member.islnk()):
        return "is a device, a pipe or of an unknown kind"
    return "is a sparse file" if member.issparse() else None


def _of_separators(were_backslashes: bool) -> list[str]:
    return ["backslashes in the names of members were taken for slashes"] if were_backslashes else []


def _check_end(path: Path, end: int) -> None:
    """tarfile takes a damaged header for the end, and reads nothing behind it; the end is zeros, as all behind it."""
    with open_regular(path) as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut short, the blocks of zeros at its end are missing")
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"the header at byte {end} is damaged")
        position = end + len(block)
        while block := file.read(_BLOCK_BYTES):
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"there is more after its end, behind byte {position} (a second tar?)")
            position += len(block)


def list_zip(path: Path, layout: Layout | None = None) -> Listing:
    """Raises DataError if it is not a zip, its directory is damaged, or it holds what the directory does not speak of.
    """
    found: list[Found] = []
    refused: list[Refused] = []
    folders: list[str] = []
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_whole(file, members, archive.start_dir)
    except _BAD_ZIP as error:
        raise DataError(f"{path} is not a whole zip file: {error}; get it again, or unpack it and pack the folder"
                        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    backslashes = False
    for number, member in enumerate(members):
        raw = _name(path, member)
        name = raw.replace("\\", "/")  # a separator in zips of some Windows programs, and never a letter of a name
        backslashes |= name != raw
        if reason := refuse_path(raw) or _not_a_zip_file(member):
            refused.append(Refused(name=name, reason=reason))
        elif name.endswith("/"):
            folders.append(name)
        else:
            found.append(Found(name=name, size=member.file_size, place=number))
    return listing(
        found, refused, ZipReader(path), folders=folders, notes=_of_separators(backslashes), layout=layout
    )


def _name(path: Path, member: zipfile.ZipInfo) -> str:
    """Raises DataError if a folder's name is in an encoding that the zip does not name."""
    said = member.orig_filename
    if member.flag_bits & _UTF8_FLAG or said.isascii():
        return said
    raw = said.encode("cp437")  # as zipfile has decoded it, which fits any bytes
    told = _unicode_path(member.extra, raw)
    if told is not None:
        return told
    try:
        return raw.decode()
    except UnicodeDecodeError:
        folder = said.replace("\\", "/").rpartition("/")[0]
        if folder.isascii() or why_ignored(folder):
            return said  # no label depends on it
    raise DataError(
        f"{path} has names in an encoding that it does not name, such as {said!r}, by which classes would be ordered; "
        "unpack it where they look right, and pack the folder"
    )


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        field = extra[position + 4:position + 4 + length]
        if kind == _UNICODE_PATH and field[:1] == b"\1" and field[1:5] == struct.pack("<I", zlib.crc32(raw)):
            return field[5:].decode(errors="replace")
        position += 4 + length
    return None


def _check_whole(file: BinaryIO, members: list[zipfile.ZipInfo], directory: int) -> None:
    """zipfile reads what the last directory names; other members, other zips and texts around them it passes over."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _LONGEST_END, 0))
    tail = file.read()
    start = tail.rfind(_END_OF_ZIP)
    (comment,) = struct.unpack_from("<H", tail, start + 20)
    if start + 22 + comment != len(tail):
        raise zipfile.BadZipFile(f"{len(tail) - start - 22 - comment} bytes lie after its end")
    position, slack = 0, 0
    for member in sorted(members, key=lambda one: one.header_offset):
        _refuse_gap(position, member.header_offset, slack)
        header = os.pread(file.fileno(), 30, member.header_offset)
        if header[:4] != b"PK\3\4" or len(header) < 30:
            raise zipfile.BadZipFile(f"no member begins at byte {member.header_offset}, as its directory has it")
        position = member.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26)) + member.compress_size
        slack = _LONGEST_DESCRIPTOR if member.flag_bits & _DESCRIPTOR_FLAG else 0
    _refuse_gap(position, directory, slack)


def _refuse_gap(position: int, found: int, slack: int) -> None:
    if found < position:
        raise zipfile.BadZipFile(f"two of its members lie over each other at byte {found}")
    if found > position + slack:
        raise zipfile.BadZipFile(f"{found - position} bytes at byte {position} are in no member of its directory")


def _not_a_zip_file(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a device, a pipe or of an unknown kind"
    if member.flag_bits & _ENCRYPTED_FLAG:
        return "is encrypted"
    return None if member.compress_type in _METHODS else f"is packed in a way that is not read ({member.compress_type})"
