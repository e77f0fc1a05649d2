"""The one place that opens files: what is read is a regular file, and what is written is complete or absent.

A pipe in the place of a file would block for ever, a device never ends, and to replace one breaks the machine. So the
kind of a file is looked at before it is opened, and once more when it is open: `tests/test_opening.py` holds every
other module to these functions. Links are followed for reading and refused for writing, where one could lead out of a
run's folder.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

TEXT_LIMIT = 2**26
"""Bytes of the longest text that is read whole: recipes, descriptions, manifests."""
LOG_LIMIT = 2**31
"""Bytes of the longest log that is read whole: a row of metrics for each of some million steps."""
_NO_LIMIT = 2**62
_BLOCK = 2**20
_KINDS = [
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
]


class NotRegular(OSError):
    """Something else lies where a regular file was wanted, or one that is too long; `strerror` says what."""


def require_regular(path: Path) -> None:
    """For libraries that open a path themselves: to be called before them. Links are followed.

    Raises OSError: NotRegular for a folder, a pipe, a device or a socket, FileNotFoundError and so on as `open` does.
    """
    _refuse_irregular(os.stat(_checked(path)), path)


def open_descriptor(path: Path) -> int:
    """A descriptor to read a regular file by. The caller closes it. Raises OSError as `require_regular` does."""
    require_regular(path)  # before it is opened: to open a pipe wakes who writes to it, and a tape rewinds
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_irregular(os.fstat(descriptor), path)  # it may have been exchanged since
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open to be read. Raises OSError as `require_regular` does."""
    return os.fdopen(open_descriptor(path), "rb")


def read_regular(path: Path, limit_bytes: int | None = TEXT_LIMIT) -> bytes:
    """The bytes of a regular file; None: however many there are.

    Raises OSError as `require_regular` does, and NotRegular if there are more bytes than `limit_bytes`.
    """
    limit = _NO_LIMIT if limit_bytes is None else limit_bytes
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        blocks: list[bytes] = []  # a read lays out as much as it asks for, so it must not ask for the limit
        while size <= limit and (not blocks or blocks[-1]) and sum(map(len, blocks)) <= limit:
            blocks.append(file.read(_BLOCK if blocks else size + 1))  # a file may say that it is empty, and go on
    content = b"".join(filter(None, blocks))
    if max(size, len(content)) > limit:
        raise NotRegular(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content


def append_regular(path: Path) -> BinaryIO:
    """A regular file, made if there is none, open to be read and to be written at its end; for lines of a log.

    Raises OSError as `require_regular` does; NotRegular for a link too.
    """
    _refuse_to_write(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        _refuse_irregular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "a+b")
    except OSError:
        os.close(descriptor)
        raise


def open_in_place(path: Path, how: int = 0) -> int:
    """A descriptor of a regular file, to read it and to write over it where it lies. The caller closes it.

    Args:
        how: os.O_CREAT makes it where there is none, os.O_CREAT | os.O_EXCL takes none that is there.

    Raises OSError as `append_regular` does, and FileExistsError.
    """
    _refuse_to_write(path)
    descriptor = os.open(path, how | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _refuse_irregular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def explained_write(path: Path) -> Iterator[None]:
    """Turns an OSError (disk full, no permission) inside the block into a UserError that names the file."""
    try:
        yield
    except NotRegular as error:
        raise UserError(f"could not write {path}: {error.strerror}; choose another name") from error
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}; {remedy(error)}") from error


def remedy(error: OSError) -> str:
    """What to do about a write that failed. The file may be of a run, of a data set or of a report: none of their
    settings is named, the path is."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give yourself the right to write there, or choose another folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space or allow more, or choose another folder"
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return "it, or its folder, vanished meanwhile; run the same command again"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return "something else has a name that is wanted; move it away, or choose another folder"
    return "choose another folder"


def remedy_of_reading(error: OSError) -> str:
    """The same of a file or folder that could not be read."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "give yourself the right to read it"
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return "it is not there, or not any more: restore it, or name another"
    return "restore it, or name another"


def make_folder(folder: Path) -> None:
    """Makes a folder and those it lies in. Raises UserError if the file system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {error.filename}: {error.strerror}; choose another") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` with the file of `written_atomically`."""
    with written_atomically(path) as file:
        write(file)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file of a temporary name, which is fsynced and renamed to `path` when the block ends; makes the folder.

    Raises UserError if the file system refuses, or if a folder, a link, a pipe, a device or a socket has the name. Then
    `path` is as it was, and so it is if the block raises.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with named_atomically(path) as temporary, os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def named_atomically(path: Path) -> Iterator[Path]:
    """The same for a library that opens a file by its name: that of a free one, which is renamed but not fsynced."""
    temporary = path.with_name(f".{path.name}.part")
    with explained_write(path):
        _refuse_to_write(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # of a process that was killed
        try:
            yield temporary
            _refuse_to_write(path)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def refuse_to_replace(path: Path) -> None:
    """For what is written otherwise, or later: raises UserError where `write_atomically` would because of the name."""
    with explained_write(path):
        _refuse_to_write(path)


def _refuse_to_write(path: Path) -> None:
    """Raises NotRegular if the name is taken by anything but a regular file."""
    try:
        found = os.lstat(_checked(path))
    except FileNotFoundError:
        return
    _refuse_irregular(found, path, wanted="a regular file or a free name")


def _refuse_irregular(found: os.stat_result, path: Path, wanted: str = "a regular file") -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for fits, words in _KINDS if fits(found.st_mode)), "no file")
        raise NotRegular(errno.EINVAL, f"it is {kind}, wanted {wanted}", str(path))


def _checked(path: Path) -> Path:
    """A name that the system takes at all: one with a zero byte is an OSError like others."""
    if "\0" in str(path):
        raise NotRegular(errno.EINVAL, "no name of a file holds a zero byte", str(path))
    return path
