"""Where a conversion writes: a new file or a new folder, which is complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ...core.errors import UserError
from ...core.files import explained_write, make_folder, written_atomically


def require_free(out: Path) -> None:
    """Raises UserError if there is anything of this name: nobody's checkpoint is replaced."""
    with explained_write(out):
        if out.is_symlink() or out.exists():
            raise UserError(f"{out} is there already; name another place, or remove it")


@contextmanager
def new_file(out: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, which gets its own when the block ends. Raises UserError if there is one."""
    require_free(out)
    with written_atomically(out) as file:
        yield file


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own when the block ends, and is removed where the block raises.

    Raises UserError if there is one, or for an error of the file system inside of the block.
    """
    require_free(out)
    partial = out.with_name(f".{out.name}.part")
    make_folder(out.parent)
    with explained_write(out):
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            partial.mkdir()
            yield partial
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Plain values, as text that a person can read."""
    with written_atomically(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
