"""Sets of images: the same pixels from a folder, an npz and shards, shared by ranks; and all that is refused."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afm_scale.core.errors import DataError, UserError
from afm_scale.data.description import ImageContent, LatentContent
from afm_scale.evaluation.images.sets import open_images
from afm_scale.packing.writer import Packing
from tests.data.small import encoded, image_folder, packed_images, picture

NUM, SIZE = 12, 16


def expected(num_images: int = NUM, size: int = SIZE) -> np.ndarray:
    """[N, H, W, C] uint8"""
    return np.stack([np.asarray(picture(number, width=size, height=size)) for number in range(num_images)])


def flat_folder(root: Path, num_images: int = NUM) -> Path:
    root.mkdir()
    for number in range(num_images):
        (root / f"{number:06d}.png").write_bytes(encoded(picture(number, width=SIZE, height=SIZE)))
    return root


def npz_file(path: Path, *, compressed: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def collected(images, *, world_size: int = 1, batch_size: int = 5) -> torch.Tensor:
    """All images in order, from all ranks' shares; every one must come once."""
    found = torch.zeros(images.num_images, *images.shape, dtype=torch.uint8)
    times = torch.zeros(images.num_images, dtype=torch.int64)
    for rank in range(world_size):
        for indices, pixels in images.batches(rank, world_size, batch_size):
            assert indices.dtype == torch.int64 and pixels.dtype == torch.uint8
            assert len(indices) == len(pixels) <= batch_size and (indices % world_size == rank).all()
            found[indices] = pixels
            times[indices] += 1
    assert (times == 1).all()
    return found


SETS = {
    "folder": flat_folder,
    "npz": lambda path: npz_file(path.with_suffix(".npz"), arr_0=expected()),
    "compressed npz": lambda path: npz_file(path.with_suffix(".npz"), compressed=True, arr_0=expected()),
    "shards": lambda path: (packed_images(path, num_samples=NUM, size=SIZE), path)[1],
}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("world_size, batch_size", [(1, 5), (1, 100), (2, 1), (5, 2), (13, 4)])
def test_all_kinds_give_every_image_once_however_they_are_shared(kind, world_size, batch_size, tmp_path):
    images = open_images(SETS[kind](tmp_path / "set"))
    assert images.num_images == NUM and images.shape == (3, SIZE, SIZE)
    found = collected(images, world_size=world_size, batch_size=batch_size)
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected())


@pytest.mark.parametrize("kind", SETS)
def test_a_limit_takes_the_first_images_and_is_told(kind, tmp_path):
    path = SETS[kind](tmp_path / "set")
    images = open_images(path, limit=7)
    assert np.array_equal(collected(images, world_size=2).permute(0, 2, 3, 1).numpy(), expected(7))
    about = images.describe()
    assert (about["num_images"], about["out_of"], about["source"]) == (7, NUM, str(path))
    assert open_images(path, limit=1000).num_images == NUM


@pytest.mark.parametrize("kind", SETS)
def test_batches_can_be_taken_again_and_left_early(kind, tmp_path):
    images = open_images(SETS[kind](tmp_path / "set"))
    first = next(images.batches(0, 1, 3))
    again = next(images.batches(0, 1, 3))
    assert torch.equal(first[0], torch.arange(3)) and torch.equal(first[1], again[1])


def test_an_npz_is_what_an_independent_reader_of_the_layout_finds(tmp_path):
    path = npz_file(tmp_path / "set.npz", arr_0=expected())
    with zipfile.ZipFile(path) as archive:
        data = archive.read("arr_0.npy")
    assert data[:8] == b"\x93NUMPY\x01\x00"
    (header_bytes,) = struct.unpack("<H", data[8:10])
    assert b"'shape': (12, 16, 16, 3)" in data[10:10 + header_bytes] and b"'|u1'" in data[10:10 + header_bytes]
    pixels = data[10 + header_bytes:]
    found = collected(open_images(path))
    for index, channel, row, column in [(0, 0, 0, 0), (11, 2, 15, 15), (7, 1, 3, 12)]:
        offset = ((index * SIZE + row) * SIZE + column) * 3 + channel
        assert found[index, channel, row, column] == pixels[offset]


@pytest.mark.parametrize("name", ["labels", "arr_1"])
def test_labels_of_an_npz_are_found_under_our_name_and_that_of_adm(name, tmp_path):
    labels = np.arange(NUM, dtype=np.int32) % 5
    path = npz_file(tmp_path / "set.npz", arr_0=expected(), **{name: labels})
    assert open_images(path, limit=8).labels.tolist() == labels[:8].tolist()
    assert open_images(path).labels.dtype == torch.int64


def test_labels_of_shards_go_with_their_images_and_a_folder_has_none(tmp_path):
    packed_images(tmp_path / "packed", num_classes=3)
    assert open_images(tmp_path / "packed", limit=10).labels.tolist() == [number % 3 for number in range(10)]
    assert open_images(flat_folder(tmp_path / "flat")).labels is None


def test_grey_files_have_one_channel(tmp_path):
    (tmp_path / "grey").mkdir()
    for number in range(3):
        image = picture(number, width=8, height=6).convert("L")
        (tmp_path / "grey" / f"{number}.PNG").write_bytes(encoded(image))
    images = open_images(tmp_path / "grey")
    assert images.shape == (1, 6, 8)
    assert np.array_equal(collected(images)[2, 0].numpy(), np.asarray(picture(2, width=8, height=6).convert("L")))


def test_class_folders_are_shuffled_so_that_the_first_images_are_of_all_classes(tmp_path):
    folder = image_folder(tmp_path / "classes", num_classes=4, per_class=25, width=8, height=8)
    images = open_images(folder, limit=20)
    classes = [name.split("/")[0] for name in images.names]
    assert len(set(classes)) == 4 and images.names == open_images(folder).names[:20]
    assert len(set(open_images(folder).names)) == 100
    assert images.describe()["order"].startswith("shuffled")


def test_hidden_files_and_files_that_are_no_images_are_left_out_and_counted(tmp_path):
    folder = flat_folder(tmp_path / "set")
    (folder / "notes.txt").write_text("made on Tuesday")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".git").mkdir()
    os.mkfifo(folder / "pipe.png")
    images = open_images(folder)
    assert images.num_images == NUM and images.describe()["other_files"] == 2


def test_the_description_changes_with_the_images(tmp_path):
    folder = flat_folder(tmp_path / "set")
    before = open_images(folder).describe()
    (folder / "000003.png").rename(folder / "000303.png")
    after = open_images(folder).describe()
    assert {name for name in before if before[name] != after[name]} == {"sha256_of_names_and_sizes"}
    one, two = (npz_file(tmp_path / f"{change}.npz", arr_0=expected() ^ np.uint8(change)) for change in (0, 1))
    assert open_images(one).describe()["crc32"] != open_images(two).describe()["crc32"]


def test_links_to_files_are_followed_and_folders_that_come_twice_refused(tmp_path):
    folder = flat_folder(tmp_path / "set", 3)
    (tmp_path / "links").mkdir()
    for path in folder.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    assert torch.equal(collected(open_images(tmp_path / "links")), collected(open_images(folder)))
    (folder / "round").symlink_to(folder)
    with pytest.raises(DataError, match="round is a link to a folder that is read already"):
        open_images(folder)


def test_decoding_in_threads_leaves_the_filters_of_warnings_alone(tmp_path):
    images = open_images(flat_folder(tmp_path / "set"))
    before = list(warnings.filters)
    batches = images.batches(0, 1, 4)
    for _ in batches:
        assert warnings.filters == before
    assert warnings.filters == before


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_never_in_memory_as_a_whole(compressed, tmp_path):
    path = npz_file(tmp_path / "large.npz", compressed=compressed, arr_0=np.zeros((600, 128, 128, 3), np.uint8))
    tracemalloc.start()
    try:
        num_found = sum(len(indices) for indices, _ in open_images(path).batches(1, 4, 8))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_found == 150
    assert peak < 600 * 128 * 128 * 3 / 2


# What is refused.

def refuse(path: Path, match: str) -> None:
    with pytest.raises(DataError, match=match):
        collected(open_images(path))


def test_what_is_not_there_and_limits_below_one_are_refused(tmp_path):
    refuse(tmp_path / "nowhere", "nowhere is not there; wanted a folder of images")
    with pytest.raises(UserError, match="number of images to use is 0; wanted at least 1"):
        open_images(flat_folder(tmp_path / "set"), limit=0)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "readme.txt").write_text("")
    refuse(tmp_path / "set", "holds no image, among 1 files")


@pytest.mark.parametrize("kind, odd, match", [
    ("size", picture(1, width=16, height=8), r"000007.png is 16 x 8 RGB \(PNG\), but .*000000.png is 16 x 16 RGB"),
    ("mode", picture(1, width=16, height=16).convert("L"), r"000007.png is 16 x 16 L \(PNG\), but .*16 x 16 RGB"),
    ("alpha", picture(1, width=16, height=16).convert("RGBA"), r"000007.png is 16 x 16 RGBA"),
])
def test_one_image_unlike_the_first_is_refused_by_its_name(kind, odd, match, tmp_path):
    folder = flat_folder(tmp_path / "set")
    (folder / "000007.png").write_bytes(encoded(odd))
    refuse(folder, match)


def test_files_of_several_formats_are_refused_by_their_names_and_by_their_bytes(tmp_path):
    folder = flat_folder(tmp_path / "set")
    (folder / "000007.png").write_bytes(encoded(picture(7, width=16, height=16), "JPEG"))
    refuse(folder, r"000007.png is 16 x 16 RGB \(JPEG\), but")
    (folder / "000007.png").rename(folder / "000007.jpg")
    with pytest.raises(DataError, match=r"mixed formats: JPEG \(.*000007.jpg\), PNG"):
        open_images(folder)


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "I;16"])
def test_a_first_image_of_a_mode_that_is_not_finished_pixels_is_refused(mode, tmp_path):
    (tmp_path / "set").mkdir()
    image = Image.new("I;16", (8, 8), 9) if mode == "I;16" else picture(0, width=8, height=8).convert(mode)
    (tmp_path / "set" / "0.png").write_bytes(encoded(image))
    refuse(tmp_path / "set", f"0.png is 8 x 8 {mode} .*wanted 8-bit RGB, or L for grey")


@pytest.mark.parametrize("data, match", [
    (b"", "000007.png is empty"),
    (b"not an image at all", "000007.png is not an image of a known format"),
    (encoded(picture(7, width=16, height=16))[:-20], "000007.png is corrupt or truncated"),
])
def test_damaged_files_are_refused_by_their_names(data, match, tmp_path):
    folder = flat_folder(tmp_path / "set")
    (folder / "000007.png").write_bytes(data)
    refuse(folder, match)


def test_a_link_to_nothing_is_refused(tmp_path):
    folder = flat_folder(tmp_path / "set")
    (folder / "000020.png").symlink_to(tmp_path / "gone.png")
    refuse(folder, "000020.png cannot be read: No such file or directory")


@pytest.mark.parametrize("array, match", [
    (expected().astype(np.float32) / 255, r"is float32 \[12, 16, 16, 3\]; wanted finished images, uint8"),
    (expected().astype(np.int64), "is int64"),
    (expected().transpose(0, 3, 1, 2).copy(), r"is uint8 \[12, 3, 16, 16\]; .*the channels last"),
    (expected()[..., 0], r"is uint8 \[12, 16, 16\]"),
    (expected()[:0], r"is uint8 \[0, 16, 16, 3\]"),
    (np.zeros((2, 8, 8, 4), np.uint8), r"is uint8 \[2, 8, 8, 4\]; .*C = 1 or 3"),
    (np.asfortranarray(expected()), "column-major order"),
    (np.array([{"a": 1}], dtype=object), "pickled Python objects, which are never loaded"),
])
def test_an_npz_of_the_wrong_type_is_refused(array, match, tmp_path):
    refuse(npz_file(tmp_path / "set.npz", arr_0=array), match)


def test_an_npz_without_images_says_what_it_holds(tmp_path):
    refuse(npz_file(tmp_path / "set.npz", mu=np.zeros(3)), r"has no array 'arr_0'; it holds mu \(float64 \[3\]\)")


@pytest.mark.parametrize("labels, match", [
    (np.zeros(NUM, np.float32), r"'labels' is float32 \[12\]; wanted the classes of 12 images"),
    (np.zeros(NUM - 1, np.int64), r"'labels' is int64 \[11\]; wanted the classes of 12 images"),
    (np.eye(NUM, dtype=np.int64), r"'labels' is int64 \[12, 12\]"),
    (np.arange(NUM) - 3, "holds -3; wanted classes, which begin at 0"),
])
def test_labels_of_an_npz_that_are_no_classes_are_refused(labels, match, tmp_path):
    refuse(npz_file(tmp_path / "set.npz", arr_0=expected(), labels=labels), match)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_a_truncated_npz_is_refused_at_once(share, tmp_path):
    path = npz_file(tmp_path / "set.npz", arr_0=expected())
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="set.npz cannot be read as an npz"):
        open_images(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_bit_of_an_npz_is_found_by_every_rank(compressed, tmp_path):
    path = npz_file(tmp_path / "set.npz", compressed=compressed, arr_0=expected())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    images = open_images(path)
    for rank in range(3):
        with pytest.raises(DataError, match="set.npz cannot be read as an npz"):
            list(images.batches(rank, 3, 4))


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 256, 256, 3)}
    )
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + b"few")
    refuse(tmp_path / "set.npz", "which is 196608000000128 bytes; the file lists 131")


@pytest.mark.parametrize("data", [
    b"", b"nothing like it", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x01\x00\x04\x00{(\n\n",
])
def test_an_array_without_a_header_is_refused(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("arr_0.npy", data)
    refuse(tmp_path / "set.npz", "array 'arr_0' has no .npy header that can be read")


def test_files_of_another_kind_are_refused(tmp_path):
    np.save(tmp_path / "set.npy", expected())
    refuse(tmp_path / "set.npy", "cannot be read as an npz")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.png", encoded(picture(0)))
    refuse(tmp_path / "set.zip", "holds no arrays")


def test_latents_and_originals_of_many_sizes_are_refused(tmp_path):
    for name, content in {
        "latents": LatentContent(shape=(4, 2, 2), vae="small", vae_sha256="0" * 64, scale=1.0),
        "originals": ImageContent(size=None, encoding="original"),
    }.items():
        packing = Packing(tmp_path / name, {}, content)
        packing.begin()
        with packing.shard(0) as writer:
            members = {"png": b"x"} if name == "originals" else {"a.npy": bytes(100), "b.npy": bytes(100)}
            writer.add(0, 0, members)
        packing.finish(1, ["only"])
    refuse(tmp_path / "latents", "holds latents; wanted images")
    refuse(tmp_path / "originals", "originals of many sizes; pack them with --size")


def test_damaged_shards_are_refused_with_shard_and_sample(tmp_path):
    packed_images(tmp_path / "packed")
    path = tmp_path / "packed" / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    refuse(tmp_path / "packed", "shard-000001.tar, sample 000000004: the bytes are not .* restore the shard")
    path.write_bytes(data[:-1])
    refuse(tmp_path / "packed", "shard-000001.tar has .* bytes, wanted")
