"""Packed data that lie, with every sum put right: through each door that reads them, work done or one message.

The doors: `doctor --data`, a source as the first and as another rank builds it and its first batch, and `show`, which
reads dataset.json alone. A traceback is no `UserError`, and fails the test.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR, DataError
from afm_scale.core.types import Batch
from afm_scale.data.description import DESCRIPTION_NAME, INDEX_NAME, ImageContent, file_sha256
from afm_scale.data.images import DaliConfig, WebDatasetConfig, decoded_image
from afm_scale.data.latents import LatentsConfig
from afm_scale.data.shards import PackedShards, SampleError
from afm_scale.data.source import Skipped
from afm_scale.data.table import build_source
from afm_scale.packing.verify import verify
from afm_scale.packing.writer import Packing
from tests.data.small import encoded, npy, packed_images, packed_latents, picture

Edit = Callable[[Path], object]
SHARD, IDX = "shard-000001.tar", "shard-000001.idx"
LARGE = 2**62
PLACES = ("offset", "size", "crc32")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve latents of two members each."""
    folder = tmp_path_factory.mktemp("whole") / "data"  # other modules make a "whole" in the same process
    packed_latents(folder)
    return folder


def batch_of(folder: Path, *, rank: int = 0, on_error: str = "stop") -> tuple[Batch, list[Skipped]]:
    """All twelve samples, or this rank's half of them. Nothing is resolved: the source itself has to look."""
    config = LatentsConfig(
        global_batch=12, folder=folder, shape=(1, 2, 2), num_classes=3, vae="some", scale=0.5, on_error=on_error,
        prefetch=1,
    )
    place = {"rank": rank, "world_size": 2} if rank else {"rank": 0, "world_size": 1}
    source = build_source(config, seed=0, device=torch.device("cpu"), **place)
    try:
        return next(iter(source)), list(source.take_skipped())
    finally:
        source.close()


def sums_put_right(folder: Path) -> None:
    """What dataset.json says of the sizes and sums of all files, as whoever changed them would change it too."""
    path = folder / DESCRIPTION_NAME
    plain = json.loads(path.read_bytes())
    plain["index_sha256"] = file_sha256(folder / INDEX_NAME)
    for shard in plain["shards"]:
        tar = folder / shard["name"]
        shard |= {"num_bytes": tar.stat().st_size, "sha256": file_sha256(tar)}
        shard["idx_sha256"] = file_sha256(tar.with_suffix(".idx"))
    path.write_text(json.dumps(plain))


def said(**changes: Any) -> Edit:
    """dataset.json says something else; `a__b` is b of a, `shards__1__name` the name of the second shard."""
    def edit(folder: Path) -> None:
        plain = json.loads((folder / DESCRIPTION_NAME).read_bytes())
        for way, value in changes.items():
            inner, *rest = plain, *way.split("__")
            for key in rest[:-1]:
                inner = inner[int(key) if key.isdigit() else key]
            inner[rest[-1]] = value
        (folder / DESCRIPTION_NAME).write_text(json.dumps(plain))
    return edit


def text(change: Callable[[bytes], bytes]) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / DESCRIPTION_NAME
        path.write_bytes(change(path.read_bytes()))
    return edit


def index(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """Columns of the index are changed in place, or replaced."""
    def edit(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / INDEX_NAME).items()}
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / INDEX_NAME)
        sums_put_right(folder)
    return edit


def at(name: str, row: int, value: int) -> Edit:
    return index(lambda tensors: tensors[name][row].fill_(value))


def becomes(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    return index(lambda tensors: tensors.update({name: change(tensors[name])}))


def file(name: str, change: Callable[[bytes], bytes]) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        sums_put_right(folder)
    return edit


def instead(name: str, make: Callable[[Path], object]) -> Edit:
    """Something that is no regular file lies in the place of one."""
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)
    return edit


def to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@dataclass(frozen=True)
class Lie:
    edit: Edit
    told: str = ""  # by `doctor`, whatever else it says
    read: bool = False  # whether training never reads what is wrong


IN_THE_DESCRIPTION = {
    "nothing": text(lambda content: b""),
    "nested deeply": text(lambda content: b"[" * 100_000),
    "nested in made": text(lambda content: content.replace(b'"seed"', b'"a": ' + b"[" * 5000 + b"]" * 5000 + b', "b"')),
    "NaN": text(lambda content: content.replace(b'"scale": 0.5', b'"scale": NaN')),
    "infinite": text(lambda content: content.replace(b'"scale": 0.5', b'"scale": 1e999')),
    "thousands of digits": text(lambda content: content.replace(b'"num_samples": 1', b'"num_samples": ' + b"9" * 9999)),
    "a key twice": text(lambda content: content.replace(b'"num_samples": 12', b'"num_samples": 12, "num_samples": 12')),
    "no UTF-8": text(lambda content: content.replace(b"class_0", b"class_\xff")),
    "half a letter": text(lambda content: content.replace(b"class_0", b"class_\\ud800")),
    "another key": said(more=1),
    "version true": said(version=True),
    "version 1.0": said(version=1.0),
    "a list for a mapping": said(content=[]),
    "null": said(num_samples=None),
    "a float for a count": said(num_samples=12.0),
    "text for a count": said(num_samples="12"),
    "true for a count": said(shards__0__num_samples=True),
    "negative": said(class_counts=[-4, 8, 8]),
    "2^62 samples": said(num_samples=LARGE, class_counts=[LARGE, 0, 0], shards__0__num_samples=LARGE - 8),
    "more samples than bytes": said(num_samples=10**6 + 8, class_counts=[10**6, 4, 4], shards__0__num_samples=10**6),
    "counts that do not add up": said(class_counts=[4, 4, 5]),
    "no classes": said(class_names=[], class_counts=[]),
    "shape of 10^15": said(content__shape=[10**5, 10**5, 10**5]),
    "shape of two": said(content__shape=[1, 4]),
    "latents of terabytes": said(content__shape=[65_536, 65_536, 64]),
    "negative scale": said(content__scale=-0.5),
    "scale of text": said(content__scale="big"),
    "a line feed in a name": said(content__vae="some\nother"),
    "another kind": said(content__kind="images"),
    "outside of the folder": said(shards__1__name="../shard-000001.tar"),
    "an absolute name": said(shards__1__name="/etc/passwd.tar"),
    "5,000 letters": said(shards__1__name="a" * 5000 + ".tar"),
    "a zero byte": said(shards__1__name="shard\0.tar"),
    "one shard twice": said(shards__1__name="shard-000000.tar"),
    "no SHA-256": said(index_sha256="0" * 63),
    "a SHA-256 of text": said(shards__1__sha256="x" * 64),
    "odd bytes": said(shards__1__num_bytes=4097),
    "a pipe": instead(DESCRIPTION_NAME, os.mkfifo),
    "a device": instead(DESCRIPTION_NAME, to_device),
    "a folder": instead(DESCRIPTION_NAME, Path.mkdir),
}
ELSEWHERE = {
    "size 2^62": Lie(at("size", 5, LARGE), INDEX_NAME),
    "size -1": Lie(at("size", 5, -1), INDEX_NAME),
    "size 0": Lie(at("size", 5, 0), INDEX_NAME),
    "offset 2^63 - 1": Lie(at("offset", 5, 2**63 - 1), INDEX_NAME),
    "offset -512": Lie(at("offset", 5, -512), INDEX_NAME),
    "offset of no block": Lie(index(lambda t: t["offset"][5].add_(1)), INDEX_NAME),
    "out of the shard": Lie(index(lambda t: t["offset"][3, 1].add_(4096)), INDEX_NAME),
    "over another": Lie(index(lambda t: t["offset"][2].copy_(t["offset"][1])), INDEX_NAME),
    "members exchanged": Lie(becomes("offset", lambda t: t.flip(1)), INDEX_NAME),
    "samples exchanged": Lie(becomes("offset", lambda t: t.flip(0)), INDEX_NAME),
    "shard 50": Lie(at("shard", 5, 50), INDEX_NAME),
    "shard -1": Lie(at("shard", 5, -1), INDEX_NAME),
    "label 3": Lie(at("label", 5, 3), INDEX_NAME),
    "label -1": Lie(at("label", 5, -1), INDEX_NAME),
    "label 2^62": Lie(at("label", 5, LARGE), INDEX_NAME),
    "another class": Lie(at("label", 5, 0), INDEX_NAME),
    "labels exchanged": Lie(becomes("label", lambda t: t[[0, 1, 2, 3, 5, 4, *range(6, 12)]]), SHARD, read=True),
    "a key twice": Lie(at("key", 5, 4), INDEX_NAME),
    "key -1": Lie(at("key", 0, -1), INDEX_NAME),
    "CRC of 33 bits": Lie(at("crc32", 5, 2**32), INDEX_NAME),
    "another CRC": Lie(at("crc32", 5, 7), SHARD),
    "labels too short": Lie(becomes("label", lambda t: t[:-1]), INDEX_NAME),
    "float labels": Lie(becomes("label", lambda t: t.float()), INDEX_NAME),
    "NaN for sizes": Lie(becomes("size", lambda t: t.double() * float("nan")), INDEX_NAME),
    "int32 labels": Lie(becomes("label", lambda t: t.int()), INDEX_NAME),
    "two-dimensional labels": Lie(becomes("label", lambda t: t[:, None]), INDEX_NAME),
    "no dimension": Lie(becomes("label", lambda t: t[0]), INDEX_NAME),
    "one member": Lie(index(lambda t: t.update({name: t[name][:, :1] for name in PLACES})), INDEX_NAME),
    "no members": Lie(index(lambda t: t.update({name: t[name][:, :0] for name in PLACES})), INDEX_NAME),
    "eleven samples": Lie(index(lambda t: t.update({name: value[:-1] for name, value in t.items()})), INDEX_NAME),
    "no samples": Lie(index(lambda t: t.update({name: value[:0] for name, value in t.items()})), INDEX_NAME),
    "a tensor missing": Lie(index(lambda t: t.pop("crc32")), INDEX_NAME),
    "a tensor more": Lie(index(lambda t: t.update(more=torch.ones(1))), INDEX_NAME),
    "no index": Lie(file(INDEX_NAME, lambda content: b"\xff" * 100), INDEX_NAME),
    "a header of 2^60": Lie(file(INDEX_NAME, lambda content: b"\0" * 7 + b"\x10" + content[8:]), INDEX_NAME),
    "an index cut short": Lie(file(INDEX_NAME, lambda content: content[:-8]), INDEX_NAME),
    "index: a pipe": Lie(instead(INDEX_NAME, os.mkfifo), INDEX_NAME),
    "index: a device": Lie(instead(INDEX_NAME, to_device), INDEX_NAME),
    "shard: a pipe": Lie(instead(SHARD, os.mkfifo), SHARD),
    "shard: a device": Lie(instead(SHARD, to_device), SHARD),
    "shard: a folder": Lie(instead(SHARD, Path.mkdir), SHARD),
    "shard cut short": Lie(file(SHARD, lambda content: content[:-4096]), INDEX_NAME),
    "shard without an end": Lie(file(SHARD, lambda content: content[:-1024]), SHARD, read=True),
    "idx: a pipe": Lie(instead(IDX, os.mkfifo), IDX),
    "idx: another line": Lie(file(IDX, lambda content: content.replace(b" 512 ", b" 513 ")), IDX, read=True),
    "idx: other ends of lines": Lie(file(IDX, lambda content: content.replace(b"\n", b"\r\n")), IDX, read=True),
    "idx: a line too many": Lie(file(IDX, lambda content: content + b"\n"), IDX, read=True),
    "idx: megabytes": Lie(file(IDX, lambda content: content * 9999), IDX, read=True),
}


def doctor(folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    code = main(["doctor", "--data", str(folder)])
    told = capfd.readouterr()
    return code, told.out, told.err.splitlines()


def show(folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(["show", "afm_1step_b2", f"data={{kind: latents, folder: {folder}, global_batch: 12}}"])
    return code, capfd.readouterr().err.splitlines()


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def test_a_set_that_is_whole_passes_every_door(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert doctor(data, capfd)[0] == EXIT_DONE == show(data, capfd)[0]
    batch, skipped = batch_of(data)
    assert sorted(batch.y.tolist()) == sorted([0, 1, 2] * 4) and not skipped
    assert len(batch_of(data, rank=1)[0].y) == 6
    sums_put_right(data)
    assert doctor(data, capfd)[0] == EXIT_DONE


@pytest.mark.parametrize("edit", IN_THE_DESCRIPTION.values(), ids=IN_THE_DESCRIPTION)
def test_a_description_that_cannot_be_is_refused_by_every_door(
    data: Path, edit: Edit, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(data)
    for rank in (0, 1):
        with pytest.raises(DataError, match=DESCRIPTION_NAME):
            batch_of(data, rank=rank)
    (code, _, err), (shown, told) = doctor(data, capfd), show(data, capfd)
    assert (code, len(err), shown, len(told)) == (EXIT_USER_ERROR, 1, EXIT_USER_ERROR, 1)
    assert DESCRIPTION_NAME in err[0] and DESCRIPTION_NAME in told[0] and len(err[0]) < 600


@pytest.mark.slow
@pytest.mark.parametrize("lie", ELSEWHERE.values(), ids=ELSEWHERE)
def test_an_index_or_a_shard_that_lies_is_found_by_the_doctor_and_ends_or_does_no_harm_to_training(
    data: Path, lie: Lie, capfd: pytest.CaptureFixture[str]
) -> None:
    lie.edit(data)
    code, out, err = doctor(data, capfd)
    assert (code, len(err)) == (EXIT_USER_ERROR, 1) and lie.told in out
    assert show(data, capfd)[0] == EXIT_DONE
    if lie.read:
        assert len(batch_of(data)[0].y) == 12
    else:
        with pytest.raises(DataError, match=f"{INDEX_NAME}|{SHARD}|{IDX}"):
            batch_of(data)
    if lie.told == INDEX_NAME:  # no sample can be trusted: this is never skipped, and every rank sees it
        for rank, on_error in ((0, "skip"), (1, "stop")):
            with pytest.raises(DataError, match=INDEX_NAME):
                batch_of(data, rank=rank, on_error=on_error)
    elif lie.told == SHARD and not lie.read:
        batch, skipped = batch_of(data, on_error="skip")
        assert len(batch.y) == 12 and skipped and all(SHARD in one.place for one in skipped)


PLANTED = npy(np.array([{}] * 8, dtype=object).reshape(2, 1, 2, 2), allow_pickle=True)
GOOD = npy(np.ones((2, 1, 2, 2), np.float16))
RECORDS = {
    "pickled objects": (PLANTED, "wanted float16"),
    "float64": (npy(np.ones((2, 1, 2, 2))), "float64"),
    "whole numbers": (npy(np.ones((2, 1, 2, 2), np.int16)), "int16"),
    "another shape": (npy(np.ones((2, 1, 4, 1), np.float16)), r"\[2, 1, 4, 1\]"),
    "another order": (npy(np.asfortranarray(np.arange(8, dtype=np.float16).reshape(2, 1, 2, 2))), "Fortran order"),
    "a header of 10^15": (GOOD.replace(b"(2, 1, 2, 2), }      ", b"(2, 1, 2, 10**15), } "), "header"),
    "a shape of 10^15": (GOOD.replace(b"(2, 1, 2, 2), }" + b" " * 15, b"(2, 1, 2, " + b"9" * 15 + b"), } "), "999"),
    "a header that is a program": (GOOD.replace(b"{'descr'", b"print(1)"), "header"),
    "a header nested deeply": (GOOD[:10] + b"(" * 118 + GOOD[-16:], "header"),
    "NaN": (npy(np.full((2, 1, 2, 2), np.nan, np.float16)), "not finite"),
    "infinite": (npy(np.array([0] * 7 + [-np.inf], np.float16).reshape(2, 1, 2, 2)), "not finite"),
    "cut short": (GOOD[:-2], "bytes, wanted"),
    "too long": (GOOD + b"\0\0", "bytes, wanted"),
    "zeros": (bytes(len(GOOD)), "magic"),
    "text": (b"Call me Ishmael. Some years ago - never mind how long precisely", "magic"),
}


@pytest.mark.parametrize("record, told", RECORDS.values(), ids=RECORDS)
def test_a_record_that_is_no_latent_is_refused_or_replaced_and_found_by_the_doctor(
    tmp_path: Path, record: bytes, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    packed_latents(tmp_path, [GOOD] * 5 + [record] + [GOOD] * 6)
    with pytest.raises(DataError, match=f"{SHARD}, sample 000000005: .*{told}.*on_error=skip"):
        batch_of(tmp_path)
    batch, (skipped,) = batch_of(tmp_path, on_error="skip")
    assert bool(batch.x.isfinite().all()) and len(batch.y) == 12 and "sample 000000005" in skipped.place
    code, out, _ = doctor(tmp_path, capfd)
    assert code == EXIT_USER_ERROR and "000000005.plain.npy" in out and "000000004" not in out


IMAGES = {
    "another size": encoded(picture(0, width=16, height=16)), "nothing": b"", "zeros": bytes(300),
    "text": b"no image at all", "cut short": encoded(picture(1, width=8, height=8))[:-30],
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webdataset", "dali"])
def test_what_is_no_image_of_the_set_is_replaced_and_counted_or_ends_the_run(tmp_path: Path, kind: str) -> None:
    """One pass over all of them, because decoding processes take their time to begin."""
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    packing = Packing(tmp_path, {"seed": 0}, ImageContent(size=8, encoding="png"))
    packing.begin()
    with packing.shard(0) as writer:
        for number, data in enumerate([*IMAGES.values(), *(encoded(picture(n, width=8, height=8)) for n in range(6))]):
            writer.add(number, 0, {"png": data})
    packing.finish(1, ["one"])
    config = {"webdataset": WebDatasetConfig, "dali": DaliConfig}[kind](
        global_batch=12, folder=tmp_path, size=8, num_classes=1, workers=1, prefetch=1, on_error="skip"
    )
    place = {"seed": 0, "rank": 0, "world_size": 1, "device": torch.device("cpu")}
    source = build_source(config, **place)
    try:
        batch = next(iter(source))
        assert batch.x.shape == (12, 3, 8, 8)
        assert {one.place[-9:] for one in source.take_skipped()} == {f"{number:09d}" for number in range(len(IMAGES))}
    finally:
        source.close()
    source = build_source(replace(config, on_error="stop"), **place)
    try:
        with pytest.raises(DataError, match="shard-000000.tar, sample 00000000"):
            next(iter(source))
    finally:
        source.close()


def test_images_of_another_size_than_is_said_are_not_stretched(tmp_path: Path) -> None:
    packed_images(tmp_path, size=8, num_shards=1)
    said(content__size=16)(tmp_path)
    shards = PackedShards(tmp_path)
    with pytest.raises(SampleError, match="is of 8 x 8 pixels, dataset.json says 16"):
        decoded_image(shards, 3, shards.read(3))
    shards.close()


def test_names_that_are_no_text_are_shown_with_escapes(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (data / os.fsdecode(b"caf\xe9\x1b[2J.tar")).write_bytes(b"")
    said(class_names=["a", os.fsdecode(b"\xe9"), "c"])(data)
    code, out, _ = doctor(data, capfd)
    assert code == EXIT_DONE and r"caf\udce9\x1b[2J.tar" in out


def test_a_member_of_negative_size_ends_the_look_at_a_shard(data: Path) -> None:
    path = data / SHARD
    content = bytearray(path.read_bytes())
    content[124:136] = b"\xff" * 12  # the size of the first member, as a binary number: -1
    content[148:156] = b"        "
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    sums_put_right(data)
    assert "says that it has -1 bytes" in "; ".join(problem.what for problem in verify(data))
