"""Images from DALI: those of Pillow, at the positions every source has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("nvidia.dali")

from afm_scale.core.errors import DataError
from afm_scale.data.dali import DaliSource, _pipeline, crop_decoded
from afm_scale.data.description import ImageContent
from afm_scale.data.images import DaliConfig, WebDatasetConfig, read_or_substitute
from afm_scale.data.shards import PackedShards
from afm_scale.data.transforms import adm_crop, decode_checked, to_pixels
from afm_scale.data.webdataset import WebDatasetSource
from afm_scale.packing.writer import Packing
from tests.data.small import encoded, packed_images, picture
from tests.data.small_sources import BATCH, NUM_SAMPLES, SEED, damaged, pack_numbered, samples_at, stream

SIDES = [(40, 30), (30, 40), (16, 16), (10, 14), (31, 33), (32, 32), (64, 100), (65, 67), (131, 90), (300, 257)]
Build = Callable[..., DaliSource]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_numbered(tmp_path_factory.mktemp("images") / "packed")


@pytest.fixture
def build(folder: Path) -> Iterator[Build]:
    sources = []

    def build(rank: int = 0, world_size: int = 1, consumed: int = 0, **changes: object) -> DaliSource:
        settings = {"folder": folder, "size": 8, "num_classes": NUM_SAMPLES, "global_batch": BATCH, "workers": 2}
        source = DaliSource(
            DaliConfig(**settings | changes), seed=SEED, rank=rank, world_size=world_size, device="cpu"
        )
        source.load_state_dict({"consumed": consumed})
        sources.append(source)
        return source

    yield build
    for source in sources:
        source.close()


def pack(out: Path, images: list[bytes], extension: str = "jpg") -> Path:
    """Originals in one shard; the label is the number of the sample."""
    packing = Packing(out, {}, ImageContent(size=None, encoding="original"))
    packing.begin()
    with packing.shard(0) as writer:
        for number, data in enumerate(images):
            writer.add(number, number, {extension: data})
    packing.finish(1, [str(number) for number in range(len(images))])
    return out


def grainy(number: int, width: int, height: int) -> Image.Image:
    """A picture with noise in every pixel, where resampling filters differ most."""
    smooth = np.asarray(picture(number, width=width, height=height)).astype(float)
    noise = np.random.default_rng(number).normal(0, 12, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def by_label(source: DaliSource) -> dict[int, Tensor]:
    pixels, labels, _ = next(source.decoded())
    return dict(zip(labels.tolist(), pixels, strict=True))


def mean_difference(found: Tensor, wanted: Tensor) -> float:
    return (found.float() - wanted.float()).abs().mean().item()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_are_those_of_the_webdataset_source(build: Build, world_size: int) -> None:
    for rank in range(world_size):
        ours = build(rank, world_size)
        config = WebDatasetConfig(
            folder=ours.config.folder, size=8, num_classes=NUM_SAMPLES, global_batch=BATCH, workers=1
        )
        other = WebDatasetSource(config, seed=SEED, rank=rank, world_size=world_size, device="cpu")
        for found, wanted in zip(islice(ours, 4), islice(other, 4), strict=True):
            assert torch.equal(found.x, wanted.x) and torch.equal(found.y, wanted.y)
        other.close()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_comes_exactly_once_per_epoch(build: Build, world_size: int) -> None:
    labels = stream(build, world_size, num_turns=5)  # 120 samples, four epochs
    assert torch.equal(labels, samples_at(0, 5 * BATCH))
    for epoch in labels.split(NUM_SAMPLES):
        assert sorted(epoch.tolist()) == list(range(NUM_SAMPLES))


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_a_position_saved_by_two_ranks_goes_on_at_any_number_of_them(build: Build, world_size: int) -> None:
    begun = stream(build, 2, num_turns=2)
    source = build(1, 2, prefetch=3)  # it reads far ahead of what it hands out
    list(islice(source, 2))
    rest = stream(build, world_size, num_turns=3, **source.state_dict())
    assert torch.equal(torch.cat((begun, rest)), samples_at(0, 5 * BATCH))


def test_what_was_read_ahead_does_not_count_and_is_forgotten_by_a_new_iterator(build: Build) -> None:
    source = build(prefetch=3)
    next(iter(source))
    assert source.state_dict() == {"consumed": BATCH}
    assert torch.equal(next(iter(source)).y, samples_at(BATCH, BATCH))


def test_a_batch_stays_as_it_is_while_later_ones_are_decoded(build: Build) -> None:
    source = build(prefetch=1)
    batches = source.decoded()
    first = next(batches)[0]
    before = first.clone()
    list(islice(batches, 6))
    assert torch.equal(first, before)


def test_originals_differ_from_the_pillow_path_by_far_less_than_two_grey_levels(build: Build, tmp_path: Path) -> None:
    images = [encoded(grainy(number, *sides), "JPEG", quality=90) for number, sides in enumerate(SIDES)]
    images.append(encoded(grainy(99, 50, 30), "JPEG", subsampling=0, progressive=True))
    source = build(folder=pack(tmp_path / "packed", images), size=16, num_classes=len(images), global_batch=len(images))
    for label, pixels in by_label(source).items():
        wanted = to_pixels(decode_checked(images[label]), 16)
        assert mean_difference(pixels, wanted) < 0.2, f"image {label}"


@pytest.mark.parametrize("sides", SIDES)
def test_the_crop_in_the_graph_for_a_gpu_differs_from_pillows_by_less_than_a_grey_level(sides: tuple[int, int]) -> None:
    # DALI's resampling on the CPU stands in for its kernels on a GPU, which share the arithmetic of sizes and regions.
    image = grainy(5, *sides)
    data = np.frombuffer(encoded(image), np.uint8)
    pipeline = _pipeline(
        iter(lambda: [data], None), size=16, crop=True, on_gpu=False, batch_size=1, num_threads=1, device_id=None
    )
    found = torch.from_numpy(np.array(pipeline.run()[0].at(0)))
    assert mean_difference(found, torch.from_numpy(np.array(adm_crop(image, 16)))) < 1


@pytest.mark.parametrize("sides", SIDES)
def test_the_crop_on_the_cpu_never_differs_by_more_than_two_levels(sides: tuple[int, int]) -> None:
    image = grainy(6, *sides)
    found, wanted = crop_decoded(np.array(image), 16), to_pixels(image, 16)
    assert found.shape == (3, 16, 16)
    assert (found.int() - wanted.int()).abs().max() <= 2


@pytest.mark.parametrize(("kind", "mode"), [
    ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"), ("JPEG", "L"), ("JPEG", "CMYK"),
    ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB"),
])
def test_every_kind_of_file_gives_pillows_pixels(build: Build, tmp_path: Path, kind: str, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray((np.arange(1200, dtype=np.uint16) * 50).reshape(30, 40))
    else:
        image = grainy(7, 40, 30).convert(mode)
    data = encoded(image, kind)
    source = build(folder=pack(tmp_path / "packed", [data]), size=16, num_classes=1, global_batch=1)
    assert mean_difference(by_label(source)[0], to_pixels(decode_checked(data), 16)) < 0.2


def test_a_picture_is_not_turned_by_its_exif_tag(build: Build, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    data = encoded(grainy(8, 40, 30), "JPEG", exif=exif)
    source = build(folder=pack(tmp_path / "packed", [data]), size=16, num_classes=1, global_batch=1)
    assert mean_difference(by_label(source)[0], to_pixels(decode_checked(data), 16)) < 0.2


def test_a_damaged_sample_ends_the_run_at_its_turn(build: Build, tmp_path: Path) -> None:
    packed_images(tmp_path / "packed", num_samples=NUM_SAMPLES, num_classes=NUM_SAMPLES, size=8)
    broken = int(samples_at(2 * BATCH + 5, 1))
    turns_before = [turn for turn in range(2) if broken in samples_at(turn * BATCH, BATCH)]
    damaged(tmp_path / "packed", broken)
    batches = iter(build(folder=tmp_path / "packed", prefetch=3))
    list(islice(batches, turns_before[0] if turns_before else 2))
    with pytest.raises(DataError, match=f"sample {broken:09d}: the bytes are not those that were packed"):
        next(batches)


def test_a_damaged_sample_is_skipped_for_the_substitute_that_every_source_takes(build: Build, tmp_path: Path) -> None:
    packed_images(tmp_path / "packed", num_samples=NUM_SAMPLES, num_classes=NUM_SAMPLES, size=8)
    broken = int(samples_at(3, 1))
    damaged(tmp_path / "packed", broken)
    shards = PackedShards(tmp_path / "packed")
    used, _, wanted = read_or_substitute(shards, broken, shards.read, seed=SEED, on_error="skip")
    labels = samples_at(0, BATCH)
    labels[labels == broken] = used
    for _ in range(2):
        source = build(folder=tmp_path / "packed", on_error="skip")
        assert torch.equal(next(iter(source)).y, labels)
        assert source.take_skipped() == wanted


def test_what_dali_cannot_decode_is_named(build: Build, tmp_path: Path) -> None:
    whole = encoded(grainy(9, 40, 30))
    torn = whole[:200] + whole[-300:]  # its beginning and its end are those of an image
    source = build(folder=pack(tmp_path / "packed", [whole, torn], "png"), size=16, num_classes=2, global_batch=2)
    with pytest.raises(DataError, match=r"shard-000000\.tar, sample 000000001 is corrupt or truncated"):
        next(iter(source))


def test_a_closed_source_can_be_closed_again_and_hands_out_nothing(build: Build) -> None:
    source = build()
    batches = iter(source)
    next(batches)
    source.close()
    source.close()
    with pytest.raises(AssertionError, match="closed"):
        next(batches)
