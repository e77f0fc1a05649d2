"""Shards as they are written: readable by others, the same bytes every time, and restartable shard by shard."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from afm_scale.core.errors import DataError, UserError
from afm_scale.data.description import ImageContent, LatentContent, read_description
from afm_scale.data.shards import PackedShards
from afm_scale.packing.writer import Packing
from tests.data.small import encoded, packed_images, picture

CONTENT = ImageContent(size=16, encoding="png")


def bytes_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pack(out, *, settings=None, shards=(0, 1), finish=True):
    packing = Packing(out, settings or {"seed": 0}, CONTENT)
    packing.begin()
    for number in shards:
        with packing.shard(number) as writer:
            for key in (2 * number, 2 * number + 1):
                writer.add(key, key % 2, {"png": encoded(picture(key))})
    return packing.finish(2, ["a", "b"]) if finish else packing


def test_the_idx_is_the_one_that_wds2idx_writes(tmp_path):
    pytest.importorskip("wds2idx")
    packed_images(tmp_path / "packed")
    for number in range(3):
        tar, idx = tmp_path / f"packed/shard-{number:06d}.tar", tmp_path / "theirs.idx"
        command = [sys.executable, "-m", "wds2idx", str(tar), str(idx)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        assert tar.with_suffix(".idx").read_text() == idx.read_text()


def test_the_shards_are_tars_that_tarfile_reads(tmp_path):
    packed_images(tmp_path)
    with tarfile.open(tmp_path / "shard-000001.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:3]] == ["000000004.png", "000000004.cls", "000000005.png"]
        assert tar.extractfile(members[0]).read() == encoded(picture(4, width=16, height=16))
        assert tar.extractfile(members[1]).read() == b"\x01\0\0\0"
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}


READ_BY_WEBDATASET = """
import json, sys, webdataset
samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False)
print(json.dumps([(sample["__key__"], sample["cls"].hex(), sample["png"].hex()) for sample in samples]))
"""


def test_the_shards_are_read_by_the_webdataset_library(tmp_path):
    pytest.importorskip("webdataset")
    packed_images(tmp_path)
    urls = [str(tmp_path / f"shard-{number:06d}.tar") for number in range(3)]
    # In a process of its own: the library leaves files open, which is an error here.
    command = [sys.executable, "-c", READ_BY_WEBDATASET, *urls]
    output = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    assert json.loads(output) == [
        [f"{number:09d}", (number % 3).to_bytes(4, "little").hex(),
         encoded(picture(number, width=16, height=16)).hex()]
        for number in range(12)
    ]


def test_packing_twice_gives_the_same_bytes(tmp_path):
    packed_images(tmp_path / "one")
    packed_images(tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_a_packing_that_stopped_goes_on_and_ends_with_the_same_bytes(tmp_path):
    pack(tmp_path / "whole")
    half = pack(tmp_path / "half", shards=[1], finish=False)
    assert half.is_written(1) and not half.is_written(0)
    (tmp_path / "half/.shard-000000.tar.part").write_bytes(b"what a killed process left")
    pack(tmp_path / "half", shards=[0])
    assert bytes_of(tmp_path / "half") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.idx", ".packing/shard-000001.safetensors"])
@pytest.mark.parametrize("left", [None, b"", b"torn"])
def test_a_shard_that_is_not_as_its_record_says_is_written_again(tmp_path, name, left):
    half = pack(tmp_path, finish=False)
    assert half.is_written(0) and half.is_written(1)
    (tmp_path / name).unlink()
    if left is not None:
        (tmp_path / name).write_bytes(left)
    assert half.is_written(0) and not half.is_written(1)


def test_a_finished_data_set_is_found_and_left_alone(tmp_path):
    done = pack(tmp_path)
    before = bytes_of(tmp_path)
    found = Packing(tmp_path, {"seed": 0}, CONTENT).begin()
    assert found == done == read_description(tmp_path)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("finish", [False, True])
def test_other_settings_are_refused_in_a_folder_that_has_some(tmp_path, finish):
    pack(tmp_path, finish=finish)
    with pytest.raises(DataError, match="was packed with seed 0, now it is 1"):
        Packing(tmp_path, {"seed": 1}, CONTENT).begin()
    with pytest.raises(DataError, match="was packed with size 16, now it is 32"):
        Packing(tmp_path, {"seed": 0}, ImageContent(size=32, encoding="png")).begin()


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(DataError, match="not empty and holds no packing.*thesis.tex"):
        Packing(tmp_path, {}, CONTENT).begin()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="is a file; a data set is a folder"):
        Packing(tmp_path / "out", {}, CONTENT).begin()


def test_what_is_refused_is_listed(tmp_path):
    packing = Packing(tmp_path, {}, CONTENT)
    packing.begin()
    with packing.shard(0) as writer:
        writer.add(0, 0, {"png": b"bytes"})
        writer.refuse("cat/1.jpg", "is empty")
    packing.finish(1, ["cat", "dog"])
    plain = json.loads((tmp_path / "dataset.json").read_text())
    assert plain["refused"] == [{"name": "cat/1.jpg", "reason": "is empty"}]
    assert plain["class_counts"] == [1, 0]


def test_a_packing_of_nothing_is_refused_with_the_reasons(tmp_path):
    packing = Packing(tmp_path, {}, CONTENT)
    packing.begin()
    with packing.shard(0) as writer:
        writer.refuse("cat/1.jpg", "is empty")
    with pytest.raises(DataError, match="no sample is left to pack: cat/1.jpg: is empty"):
        packing.finish(1, ["cat"])


def test_both_members_of_a_latent_are_indexed(tmp_path):
    packing = Packing(tmp_path, {}, LatentContent(shape=(4, 2, 2), vae="tiny", vae_sha256="0" * 64, scale=1.0))
    packing.begin()
    first, second = b"first" * 20, b"second one" * 11  # a header, and 64 bytes of values
    with packing.shard(0) as writer:
        writer.add(0, 0, {"plain.npy": first, "mirrored.npy": second})
    packing.finish(1, ["cat"])
    shards = PackedShards(tmp_path)
    assert (shards.read(0, 0), shards.read(0, 1)) == (first, second)
    shards.close()


def record_with(**tensors):
    """Puts other columns into the record of shard 1, which a packing that was killed has left."""
    def change(scratch):
        path = scratch / "shard-000001.safetensors"
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        save_file(load_file(path) | tensors, path, about)
    return change


def about_with(value):
    def change(scratch):
        path = scratch / "shard-000001.safetensors"
        save_file(load_file(path), path, value)
    return change


def put(name, content):
    return lambda scratch: (scratch / name).write_bytes(content)


def pipe(name):
    def change(scratch):
        (scratch / name).unlink()
        os.mkfifo(scratch / name)
    return change


@pytest.mark.parametrize("damage", [
    put("settings.json", b"["), put("settings.json", b"[" * 100_000), put("settings.json", b"null"),
    put("settings.json", b'{"content": 1, "settings": {}}'), put("settings.json", b"{}"), pipe("settings.json"),
    put("shard-000001.safetensors", b"none"), pipe("shard-000001.safetensors"), about_with(None),
    about_with({"about": "{}"}), about_with({"about": "[" * 100_000}), about_with({"about": "NaN"}),
    record_with(label=torch.tensor([0, 2**62])), record_with(label=torch.tensor([0.0, 1.0])),
    record_with(shard=torch.tensor([1, 50])), record_with(size=torch.tensor([[2**62], [1]])),
    record_with(crc32=torch.tensor([[1, 2], [3, 4]])), record_with(more=torch.tensor([1])),
])
def test_what_a_killed_packing_left_is_checked_before_it_is_gone_on_with(tmp_path, damage):
    pack(tmp_path, finish=False)
    damage(tmp_path / ".packing")
    with pytest.raises(DataError, match=r"\.packing.*again"):
        pack(tmp_path, shards=())
    assert not (tmp_path / "dataset.json").exists()


def test_a_shard_is_written_through_no_link_and_over_no_device(tmp_path):
    other = tmp_path / "other"
    other.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".packing").mkdir()
    (out / ".packing" / "settings.json").write_text(json.dumps({"content": asdict(CONTENT), "settings": {"seed": 0}}))
    (out / ".shard-000000.tar.part").symlink_to(other)  # where one would be made
    pack(out)
    assert other.read_text() == "precious"
    again = tmp_path / "again"
    shutil.copytree(out, again)
    (again / "dataset.json").unlink()
    (again / ".packing").mkdir()
    (again / ".packing" / "settings.json").write_text(json.dumps({"content": asdict(CONTENT), "settings": {"seed": 0}}))
    for name, target in (("shard-000000.tar", other), ("shard-000000.idx", "/dev/full")):
        (again / name).unlink()
        (again / name).symlink_to(target)
        with pytest.raises(UserError, match=f"could not write .*{name}: it is a link"):
            pack(again)
        (again / name).unlink()
    assert other.read_text() == "precious"
