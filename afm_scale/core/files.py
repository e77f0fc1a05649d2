"""Writing small files so that they are complete or absent, with errors a user can act on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import UserError


@contextmanager
def explained_write(path: Path) -> Iterator[None]:
    """Turns an OSError (disk full, no permission) inside the block into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"could not write {path}: {reason}; free some space, or choose a folder you may write to with run.folder"
        ) from error


def make_folder(folder: Path) -> None:
    """Makes a folder and those it lies in. Raises UserError if the file system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {error.filename}: {error.strerror}; choose another") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` with a file of a temporary name, then fsyncs and renames it to `path`; makes the folder.

    Raises UserError if the file system refuses; then `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.part")
    with explained_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
