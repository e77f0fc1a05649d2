"""dataset.json: what is written is read, and what is not whole is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from afm_scale.core.errors import DataError
from afm_scale.data.description import (
    DESCRIPTION_NAME,
    DatasetDescription,
    ImageContent,
    LatentContent,
    Refused,
    Shard,
    read_description,
    write_description,
)

SHARDS = (
    Shard(name="shard-000000.tar", num_samples=2, num_bytes=9216, sha256="a" * 64, idx_sha256="b" * 64),
    Shard(name="shard-000001.tar", num_samples=1, num_bytes=4096, sha256="c" * 64, idx_sha256="d" * 64),
)
DESCRIPTION = DatasetDescription(
    content=ImageContent(size=16, encoding="png"), num_samples=3, class_names=("cat", "größer"), class_counts=(1, 2),
    shards=SHARDS, index_sha256="e" * 64, made={"seed": 0},
    refused=(Refused(name="bad\udcff.jpg", reason="is empty"),),
)
LATENTS = LatentContent(shape=(4, 2, 2), vae="tiny", vae_sha256="f" * 64, scale=0.18)


@pytest.mark.parametrize("content", [DESCRIPTION.content, LATENTS, ImageContent(size=None, encoding="original")])
def test_what_was_written_is_read(tmp_path, content):
    description = replace(DESCRIPTION, content=content)
    write_description(tmp_path, description)
    assert read_description(tmp_path) == description


def edited(folder: Path, **changes: object) -> Path:
    write_description(folder, DESCRIPTION)
    path = folder / DESCRIPTION_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("changes, message", [
    ({"version": 2}, "is not of format 'afm_scale data set', version 1"),
    ({"format": "other"}, "is not of format"),
    ({"num_samples": 4}, "the shards hold 3 samples, num_samples is 4"),
    ({"class_counts": [1, 1]}, "class_counts do not add up"),
    ({"class_names": ["cat"]}, "class_counts do not add up to num_samples, or are not one for each class"),
    ({"content": {"kind": "sounds"}}, "is damaged"),
    ({"shards": [{"name": "x.tar"}]}, "is damaged"),
])
def test_a_description_that_contradicts_itself_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_description(edited(tmp_path, **changes))


@pytest.mark.parametrize("name", ["../shard-000001.tar", "/etc/passwd"])
def test_a_shard_outside_the_folder_is_refused(tmp_path, name):
    shards = json.loads(json.dumps([vars(shard) for shard in SHARDS]))
    shards[1]["name"] = name
    with pytest.raises(DataError, match=r"shards\[1\].name: found .*, wanted the name of a .tar in this folder"):
        read_description(edited(tmp_path, shards=shards))


def test_an_unfinished_and_a_missing_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="the packing is unfinished: run it again"):
        read_description(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_description(tmp_path / "absent")


@pytest.mark.parametrize("text", ["{", "[]", "\x00\x01"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / DESCRIPTION_NAME).write_text(text)
    with pytest.raises(DataError, match="pack the data set again"):
        read_description(tmp_path)
