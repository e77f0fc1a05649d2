"""Manifests that say what cannot be, and files that are none: one CheckpointError, at once, whoever reads them."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import afm_scale
from afm_scale.__main__ import main
from afm_scale.checkpoint.manifest import MANIFEST_NAME, METADATA_NAME
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR, CheckpointError

from .planting import copy_of, edit_manifest
from .test_reading_runs_nothing import trained

WEIGHT = "average.x_embedder.proj.weight"


def put(value: object, *keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit


LIES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    *((drop(key), f"missing '{key}'") for key in ("step", "created", "scalars", "tensors", "files", "description")),
    *((put(None, key), f"{key}: found null") for key in ("step", "world_size", "scalars", "tensors", "files")),
    (put(-1, "step"), "step: found -1"), (put(10**30, "step"), "step: found 1000"), (put(True, "step"), "found true"),
    (put("x" * 5000, "created"), "created: found 'xxxx"), (put(0, "world_size"), "world_size: found 0"),
    (put(1, "later"), "unknown key"), (put([], "description"), "description: found []"),
    (put(None, "tensors", WEIGHT), "wanted a mapping"), (drop("tensors", WEIGHT, "dtype"), "missing 'dtype'"),
    (put([10**15, 8], "tensors", WEIGHT, "shape"), "nothing in them is compressed"),
    (put([2**52] * 4, "tensors", WEIGHT, "shape"), "nothing in them is compressed"),
    (put([10**30], "tensors", WEIGHT, "shape"), "shape[0]: found 1000"),
    (put([-8, -1], "tensors", WEIGHT, "shape"), "shape[0]: found -8"),
    (put([8.0, 16], "tensors", WEIGHT, "shape"), "shape[0]: found 8.0"),
    (put("8", "tensors", WEIGHT, "shape"), "shape: found '8'"),
    *((put(name, "tensors", WEIGHT, "dtype"), "dtype: found") for name in ("load", "nn", "x" * 5000, 32, None)),
    (put({"shape": [1], "dtype": "float32"}, "tensors", "x" * 5000), "wanted a name of at most 1000"),
    *((put(8, "files", name), "wanted the name of a file") for name in (
        "../x", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "a\nb", "x" * 5000,
    )),
    *((put(size, "files", "__0_0.distcp"), "files.__0_0.distcp: found") for size in (-1, None, "9", 10**30, 1.0)),
    (put(10**6, "files", "__0_0.distcp"), "is torn"), (put(7, "files", "absent.distcp"), "absent.distcp is missing"),
    (put("2", "format_version"), "has checkpoint format '2'"), (put([], "format"), "was not written by this program"),
    (drop("files", "__0_0.distcp"), "nothing in them is compressed"),
    (put({}, "sha256"), "SHA256SUMS is missing"), (put({"a": "b"}, "sha256"), "sha256.a: found 'b'"),
    (put([1], "card"), "card: found [1]"),
]
OF_TENSORS: list[tuple[Callable[[dict[str, Any]], None], str]] = [  # which the metadata tell
    (drop("tensors", WEIGHT), f"{WEIGHT} is in one of"), (put({}, "tensors"), "is in one of"),
    (put("int32", "tensors", WEIGHT, "dtype"), f"{WEIGHT} is not the"), (drop("files", METADATA_NAME), "lists no"),
    (put([16, 1, 2, 4], "tensors", WEIGHT, "shape"), f"{WEIGHT} is not the"),
]
OF_THE_STATE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (drop("scalars", "data"), "scalars: missing 'data'"), (put({}, "scalars"), "scalars: missing"),
    (put(None, "scalars", "images_seen"), "scalars.images_seen: found null"),
    (put(1.5, "scalars", "images_seen"), "scalars.images_seen: found 1.5"),
    (put(7, "scalars", "step"), "scalars.step: found 7, wanted the 3"), (put(7, "step"), "scalars.step: found 3"),
    (put(-8, "scalars", "data", "consumed"), "scalars.data.consumed: found -8"),
    (put(2**70, "scalars", "data", "consumed"), "scalars.data.consumed: found 118"),
    (put([], "scalars", "data"), "scalars.data: found []"), (put(1, "scalars", "later"), "scalars.later: unknown key"),
]
TEXTS = {
    "nested": (b"[" * 100_000, "nested too deeply"), "twice": (b'{"format": 1, "format": 1}', "key 'format' twice"),
    "nan": (b'{"step": NaN}', "no finite number"), "bytes": (b'{"format": "\xff"}', "no text"),
    "digits": (b'{"step": ' + b"9" * 10_000 + b"}", "digit"), "half": (b'{"a": "\\ud800"}', "a text in it is none"),
    "empty": (b"", "damaged"), "binary": (bytes(999), "damaged"),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copy_of("flow_matching", tmp_path / "run")


def refused(checkpoint: Path, *words: str) -> None:
    """By the object to draw from and by the command that shows it; the message is one and has the words."""
    began = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        afm_scale.load(checkpoint, device="cpu")
    assert main(["inspect_checkpoint", str(checkpoint), "--digest"]) == EXIT_USER_ERROR
    assert time.perf_counter() - began < 5
    message = str(caught.value)
    assert all(word in message for word in (str(checkpoint), *words)) and len(message) < 1000, message


@pytest.mark.parametrize("number", range(len(LIES + OF_TENSORS)))
def test_a_manifest_that_says_what_cannot_be_is_refused(number: int, checkpoint: Path) -> None:
    edit, message = (LIES + OF_TENSORS)[number]
    edit_manifest(checkpoint, edit)
    refused(checkpoint, message)


@pytest.mark.parametrize("text", TEXTS)
def test_a_manifest_that_is_no_plain_json_is_refused(text: str, checkpoint: Path) -> None:
    content, message = TEXTS[text]
    (checkpoint / MANIFEST_NAME).write_bytes(content)
    refused(checkpoint, message)


@pytest.mark.parametrize("number", range(len(OF_THE_STATE)))
def test_a_state_that_cannot_be_is_not_gone_on_from(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, message = OF_THE_STATE[number]
    edit_manifest(copy_of("afm", tmp_path / "run"), edit)
    assert trained("digits_afm", tmp_path / "new", f"run.resume_from={tmp_path / 'run'}") == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, {"run": None}, {"run": {"folder": 5}}])
def test_what_is_for_people_may_be_anything(
    value: object, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(checkpoint, put({"config": value, "versions": value}, "description"))
    assert main(["inspect_checkpoint", str(checkpoint)]) == EXIT_DONE
    assert "run         " in capsys.readouterr().out


def put_there(file: Path, kind: str) -> None:
    """Something else in the place of a file."""
    file.unlink()
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a folder":
        file.mkdir()
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            here = os.getcwd()
            os.chdir(file.parent)  # the whole path may be longer than a socket's name
            bound.bind(file.name)
            os.chdir(here)
    elif kind == "a link to itself":
        file.symlink_to(file.name)
    else:
        with file.open("wb") as opened:
            opened.truncate(5 * 10**9)


@pytest.mark.parametrize("name", [MANIFEST_NAME, METADATA_NAME, "__0_0.distcp"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a socket", "a link to itself", "5 GB of nothing"])
def test_what_is_no_file_is_refused_before_it_is_opened(kind: str, name: str, checkpoint: Path) -> None:
    put_there(checkpoint / name, kind)
    refused(checkpoint, name)


def test_metadata_that_are_far_too_long_are_not_read(checkpoint: Path) -> None:
    size = 5 * 10**9
    put_there(checkpoint / METADATA_NAME, "5 GB of nothing")
    edit_manifest(checkpoint, put(size, "files", METADATA_NAME))
    refused(checkpoint, METADATA_NAME, "it has more than")


def test_a_folder_that_is_none_is_refused(checkpoint: Path) -> None:
    for kind in ("a pipe", "a device", "a socket", "a link to itself"):
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
        checkpoint.touch()
        put_there(checkpoint, kind)
        refused(checkpoint)


def test_the_edits_are_of_a_checkpoint_that_is_good(checkpoint: Path) -> None:
    edit_manifest(checkpoint, lambda content: None)
    assert afm_scale.load(checkpoint, device="cpu").step == 3
    assert main(["inspect_checkpoint", str(checkpoint), "--digest"]) == EXIT_DONE
