from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest

from afm_scale.core.errors import UserError
from afm_scale.core.files import explained_write, write_atomically


def test_a_file_is_written_into_a_folder_that_was_not_there(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b", lambda file: file.write(b"new"))
    assert (tmp_path / "a" / "b").read_bytes() == b"new"


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=f"could not write {path}: No space left on device; free some space"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_errors_of_the_file_system_are_explained() -> None:
    with pytest.raises(ValueError, match="ours"), explained_write(Path("file")):
        raise ValueError("ours")
