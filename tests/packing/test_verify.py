"""`doctor --data`: every kind of damage is found and named, and a whole data set has no problems."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR, DataError
from afm_scale.data.description import INDEX_NAME, LatentContent, file_sha256, read_description, write_description
from afm_scale.data.index import SampleIndex
from afm_scale.packing.verify import Problem, verify
from afm_scale.packing.writer import Packing
from tests.data.small import packed_images

SHARD = "shard-000001.tar"
IDX = "shard-000001.idx"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Twelve images in three shards."""
    packed_images(tmp_path / "data")
    return tmp_path / "data"


def found(folder: Path) -> dict[str, str]:
    """What is wrong, by file."""
    problems: dict[str, list[str]] = {}
    for problem in verify(folder):
        problems.setdefault(problem.file, []).append(problem.what)
    return {file: "; ".join(what) for file, what in problems.items()}


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def rewritten(folder: Path, change: Callable[[tarfile.TarInfo, bytes], list[tuple[tarfile.TarInfo, bytes]]]) -> None:
    """Shard 1 with each member replaced by what `change` returns; the description is made to agree with the new bytes.

    So only the comparison of members with the index can tell that something is wrong.
    """
    path = folder / SHARD
    buffer = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for info in old.getmembers():
            for other, data in change(info, old.extractfile(info).read()):
                other.size = len(data)
                new.addfile(other, io.BytesIO(data))
    path.write_bytes(buffer.getvalue())
    description = read_description(folder)
    shards = [
        replace(shard, num_bytes=path.stat().st_size, sha256=file_sha256(path)) if shard.name == SHARD else shard
        for shard in description.shards
    ]
    write_description(folder, replace(description, shards=tuple(shards)))


def with_index(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Another index, and a description that agrees with its bytes."""
    tensors = SampleIndex.read(folder / INDEX_NAME).tensors()
    change(tensors)
    save_file(tensors, folder / INDEX_NAME)
    description = read_description(folder)
    write_description(folder, replace(description, index_sha256=file_sha256(folder / INDEX_NAME)))


def test_a_whole_data_set_has_no_problems(whole):
    assert list(verify(whole)) == []


def test_a_whole_data_set_of_latents_has_no_problems(tmp_path):
    content = LatentContent(shape=(4, 2, 2), vae="tiny", vae_sha256="0" * 64, scale=1.0)
    packing = Packing(tmp_path, {}, content)
    packing.begin()
    with packing.shard(0) as writer:
        for key in range(3):
            buffer = io.BytesIO()
            np.save(buffer, np.full((2, 4, 2, 2), key, np.float16))
            writer.add(key, key % 2, {"plain.npy": buffer.getvalue(), "mirrored.npy": buffer.getvalue()})
    packing.finish(1, ["a", "b"])
    assert list(verify(tmp_path)) == []

    shard = tmp_path / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"000000001.mirrored.npy", b"000000001.mirrorod.npy"))
    assert "byte" in found(tmp_path)[shard.name]  # the sum of the tar header is wrong now


def test_every_byte_of_the_shards_is_read_once(whole):
    steps: list[int] = []
    assert list(verify(whole, steps.append)) == []
    assert sum(steps) == sum(path.stat().st_size for path in whole.glob("*.tar"))


@pytest.mark.parametrize("part", ["header", "data", "padding", "end"])
def test_a_changed_byte_is_found_wherever_it_lies(whole, part):
    """The padding is covered by the SHA-256 alone."""
    index = SampleIndex.read(whole / INDEX_NAME)
    sample = 5  # the second of shard 1
    offset, size = int(index.offset[sample, 0]), int(index.size[sample, 0])
    at = {"header": offset - 500, "data": offset + 40, "padding": offset + size, "end": -1}[part]
    assert part != "padding" or size % 512, "this image fills its blocks: choose another"
    flip(whole / SHARD, at)
    problems = found(whole)
    assert "SHA-256" in problems[SHARD]
    assert problems.keys() == ({SHARD, IDX} if part == "header" else {SHARD})
    assert ("'000000005.png' has CRC-32" in problems[SHARD]) == (part == "data")


def test_a_shard_cut_short_is_found_with_the_samples_that_are_lost(whole):
    path = whole / SHARD
    path.write_bytes(path.read_bytes()[: int(SampleIndex.read(whole / INDEX_NAME).offset[6, 0]) + 10])
    problems = found(whole)[SHARD]
    assert "ends inside member '000000006.png'" in problems
    assert "lacks a member (png) of sample 000000007" in problems and "000000005" not in problems
    assert "wanted 11264" in problems


@pytest.mark.parametrize("name", [SHARD, IDX, INDEX_NAME])
def test_a_missing_file_is_found(whole, name):
    (whole / name).unlink()
    problems = found(whole)
    assert problems.keys() == {name}
    assert "No such file" in problems[name]


def test_swapped_shards_are_found_and_the_list_is_kept_short(tmp_path):
    packed_images(tmp_path, num_samples=60, num_shards=2)
    first, second = tmp_path / "shard-000000.tar", tmp_path / "shard-000001.tar"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    problems = [problem.what for problem in verify(tmp_path) if problem.file == first.name]
    assert "'000000030.png' that is not in index.safetensors" in problems[0]
    assert problems[10].startswith("and ") and problems[10].endswith(" more of these")
    assert len(problems) <= 13


def test_an_idx_file_of_another_shard_is_found_with_the_line(whole):
    (whole / IDX).write_bytes((whole / "shard-000000.idx").read_bytes())
    (problem,) = found(whole).items()
    assert problem[0] == IDX and "line 2 is 'png 512 " in problem[1] and "000000004.png" in problem[1]


def test_an_index_of_another_packing_is_found(whole, tmp_path):
    packed_images(tmp_path / "other", num_samples=9)
    (tmp_path / "other" / INDEX_NAME).replace(whole / INDEX_NAME)
    problems = found(whole)
    assert problems.keys() == {INDEX_NAME}
    assert "SHA-256" in problems[INDEX_NAME]
    assert "is of 9 samples with 1 members each, dataset.json of 12" in problems[INDEX_NAME]


def test_an_index_that_is_none_is_found(whole):
    (whole / INDEX_NAME).write_bytes(b"not an index")
    assert found(whole).keys() == {INDEX_NAME}


@pytest.mark.parametrize(("column", "value", "file", "words"), [
    ("label", 3, INDEX_NAME, "labels from 0 to 3, wanted 0 to 2"),
    ("label", -1, INDEX_NAME, "labels from -1 to 2"),
    ("label", 0, INDEX_NAME, "holds 5 samples of class 'class_0', dataset.json says 4"),
    ("label", 0, SHARD, "'000000005.cls' holds label 2, index.safetensors says 0"),
    ("shard", 2, INDEX_NAME, "other shards"),
    ("key", 99, SHARD, "'000000005.png' that is not in index.safetensors; "),
    ("key", 99, SHARD, "lacks its label of sample 000000099"),
    ("offset", 7, SHARD, "'000000005.png' has byte "),
    ("size", 7, SHARD, "'000000005.png' has size "),
    ("crc32", 7, SHARD, "'000000005.png' has CRC-32 "),
])
def test_an_index_that_says_something_else_of_one_sample_is_found(whole, column, value, file, words):
    with_index(whole, lambda tensors: tensors[column][5].fill_(value))
    problems = found(whole)
    assert words in problems[file]
    assert problems.keys() <= {INDEX_NAME, SHARD, "shard-000002.tar"}


def renamed(name: str) -> Callable:
    def change(info, data):
        info.name = name if info.name == "000000005.png" else info.name
        return [(info, data)]
    return change


@pytest.mark.parametrize("name", ["/000000005.png", "../000000005.png", "a/../../000000005.png", "..\\000000005.png"])
def test_a_member_that_leads_out_of_the_folder_is_found(whole, name):
    rewritten(whole, renamed(name))
    problems = found(whole)[SHARD]
    assert "outside the folder" in problems and repr(name) in problems
    assert "lacks a member (png) of sample 000000005" in problems


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_a_member_that_is_no_file_is_found(whole, kind):
    def change(info, data):
        if info.name != "000000005.png":
            return [(info, data)]
        info.type, info.linkname = kind, "elsewhere"
        return [(info, b"")]

    rewritten(whole, change)
    assert f"of type {kind.decode()!r}: '000000005.png'" in found(whole)[SHARD].replace("/'", "'")


def test_an_extra_member_is_found(whole):
    extra = tarfile.TarInfo("000000005.txt")
    rewritten(whole, lambda info, data: [(info, data)] + [(extra, b"")] * (info.name == "000000007.cls"))
    problems = found(whole)
    assert problems[SHARD] == "has a member '000000005.txt' that is not in index.safetensors"
    assert "line 3" in problems[IDX]


def test_a_member_that_is_there_twice_is_found(whole):
    rewritten(whole, lambda info, data: [(info, data)] * (1 + (info.name == "000000007.cls")))
    assert found(whole)[SHARD] == "has member '000000007.cls' twice"


@pytest.mark.parametrize("label", [b"1", b"\x01\0\0\0\0", b"\xff\xff\xff\xff"])
def test_a_label_of_another_width_or_value_is_found(whole, label):
    rewritten(whole, lambda info, data: [(info, label if info.name == "000000007.cls" else data)])
    assert "'000000007.cls' holds label " in found(whole)[SHARD]


def test_other_files_are_noted_and_harmless(whole):
    (whole / ".shard-000003.tar.part").write_bytes(b"")
    (whole / "shard-000009.tar").write_bytes(b"")
    assert list(verify(whole)) == [
        Problem(".shard-000003.tar.part", "is not part of the data set", harmless=True),
        Problem("shard-000009.tar", "is not part of the data set", harmless=True),
    ]


def test_without_a_description_nothing_can_be_said(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        list(verify(tmp_path))


def test_doctor_says_what_a_whole_data_set_is(whole, capsys):
    (whole / "notes.txt").write_text("ours")
    assert main(["doctor", "--data", str(whole)]) == EXIT_DONE
    said = capsys.readouterr()
    assert "images, 16 x 16 pixels, png" in said.out and "33,792" in said.out and "4 to 4" in said.out
    assert "note: notes.txt" in said.out and "whole" in said.out and said.err == ""


def test_doctor_counts_the_refused_files_by_reason(tmp_path, capsys):
    out = tmp_path / "data"
    description = packed_images(out)
    again = Packing(tmp_path / "again", description.made, description.content)
    again.begin()
    with again.shard(0) as writer:
        writer.add(0, 0, {"png": b"bytes"})
        writer.refuse("a.jpg", "truncated")
        writer.refuse("b.jpg", "truncated")
        writer.refuse("c.txt", "no image [at all]")
    again.finish(1, ["only"])
    assert main(["doctor", "--json", "--data", str(tmp_path / "again")]) == EXIT_DONE
    refused = json.loads(capsys.readouterr().out)["data"]["refused when packed"]
    assert refused == {"files": 3, "by reason": {"truncated": 2, "no image [at all]": 1}}
    assert main(["doctor", "--data", str(tmp_path / "again")]) == EXIT_DONE
    assert "1: no image [at all]" in capsys.readouterr().out


@pytest.mark.parametrize("json_wanted", [False, True])
def test_doctor_lists_what_is_damaged_and_ends_with_one_message(whole, capsys, json_wanted):
    flip(whole / SHARD, -1)
    (whole / "shard-000002.idx").unlink()
    assert main(["doctor", "--data", str(whole), *["--json"] * json_wanted]) == EXIT_USER_ERROR
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"error: {whole} is not whole: 2 of its files")
    if json_wanted:
        report = json.loads(said.out)
        assert report["whole"] is False and report["data"]["samples"] == 12
        assert [problem["file"] for problem in report["problems"]] == [SHARD, "shard-000002.idx"]
        digest = sha256((whole / SHARD).read_bytes()).hexdigest()
        assert digest in report["problems"][0]["what"]
    else:
        assert f"{SHARD}: has SHA-256" in said.out and "shard-000002.idx: cannot be read: No such file" in said.out
        assert "whole" not in said.out


def test_doctor_tells_a_folder_that_holds_no_data_set(tmp_path, capsys):
    assert main(["doctor", "--data", str(tmp_path)]) == EXIT_USER_ERROR
    assert "make_shards.py" in capsys.readouterr().err
