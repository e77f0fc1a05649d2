from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from afm_scale.core.errors import UserError
from afm_scale.core.files import (
    NotRegular,
    append_regular,
    explained_write,
    open_regular,
    read_regular,
    refuse_to_replace,
    require_regular,
    write_atomically,
)


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


@pytest.mark.parametrize(("code", "told"), [
    (errno.EACCES, "give yourself the right"), (errno.EROFS, "give yourself the right"),
    (errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EFBIG, "free some space"),
    (errno.ENOENT, "vanished meanwhile"), (errno.ESTALE, "vanished meanwhile"), (errno.EIO, "choose another folder"),
    (errno.EEXIST, "something else has a name"), (errno.ENOTDIR, "something else has a name"),
])
def test_the_advice_fits_the_error_and_names_no_setting(code: int, told: str) -> None:
    """The file may be of a run, of a packing or of an evaluation."""
    with pytest.raises(UserError) as caught, explained_write(Path("file")):
        raise OSError(code, os.strerror(code))
    line = str(caught.value)
    words = ("give yourself the right", "free some space", "vanished meanwhile", "something else has")
    assert told in line and "run.folder" not in line and sum(word in line for word in words) <= 1


def test_only_errors_of_the_file_system_are_explained() -> None:
    with pytest.raises(ValueError, match="ours"), explained_write(Path("file")):
        raise ValueError("ours")


@contextmanager
def no_file(path: Path, kind: str):
    """What is no regular file under a name; devices are those of this machine, which are never written to."""
    if kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a socket":
        here = os.getcwd()
        with closing(socket.socket(socket.AF_UNIX)) as bound:
            os.chdir(path.parent)  # a socket's name is short
            try:
                bound.bind(path.name)
            finally:
                os.chdir(here)
            yield
        return
    yield


READERS: list[Callable[[Path], object]] = [require_regular, open_regular, read_regular]
KINDS = ["a folder", "a named pipe", "a device", "a socket"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_what_is_no_regular_file_is_refused_before_it_can_block(
    read: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    path, link = tmp_path / "x", tmp_path / "link"
    link.symlink_to(path)
    with no_file(path, kind):
        for name in (path, link):
            with pytest.raises(NotRegular) as error:
                read(name)
            assert error.value.strerror == f"it is {kind}, wanted a regular file"


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"text"


def test_a_file_that_is_not_there_and_a_name_that_cannot_be_are_plain_errors_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "x")
    with pytest.raises(OSError, match="zero byte"):
        open_regular(Path("a\0b"))


def test_no_more_is_read_than_the_limit_and_what_is_longer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_regular(path, 2**60) == b"12345"  # no room is made for so much
    assert read_regular(path, 5) == read_regular(path, None) == b"12345"
    with pytest.raises(NotRegular, match="more than 4 bytes"):
        read_regular(path, 4)
    with path.open("r+b") as file:
        file.truncate(2**40)  # of holes
    with pytest.raises(NotRegular, match="more than"):
        read_regular(path)
    with pytest.raises(NotRegular, match="more than 100 bytes"):
        read_regular(Path("/proc/self/maps"), 100)  # which says that it is empty


@pytest.mark.parametrize("kind", [*KINDS, "a link"])
def test_a_write_leaves_what_is_no_regular_file_as_it_is(kind: str, tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "x"
    other.write_bytes(b"somebody's")
    if kind == "a link":
        path.symlink_to(other)
    with no_file(path, kind):
        before = os.lstat(path)
        named = "a link" if kind == "a device" else kind  # here it is a link to one
        for write in (
            lambda: write_atomically(path, lambda file: file.write(b"new")), lambda: refuse_to_replace(path)
        ):
            with pytest.raises(UserError, match=f"could not write {path}: it is {named}, wanted a regular file or a"):
                write()
        with pytest.raises(NotRegular, match=named):
            append_regular(path)
        assert os.lstat(path) == before
    assert other.read_bytes() == b"somebody's"


def test_the_devices_of_the_machine_are_not_written_to() -> None:
    with pytest.raises(UserError, match="/dev/null: it is a device"):
        refuse_to_replace(Path("/dev/null"))


def test_the_temporary_name_leads_nowhere(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"somebody's")
    (tmp_path / ".x.part").symlink_to(other)
    write_atomically(tmp_path / "x", lambda file: file.write(b"new"))
    assert (other.read_bytes(), (tmp_path / "x").read_bytes()) == (b"somebody's", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "x"]


def test_what_is_appended_comes_after_what_was_there(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        with append_regular(tmp_path / "log") as file:
            file.write(line)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
