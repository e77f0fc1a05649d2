"""Images from worker processes: the right ones, at the right places, whatever happens around them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import DataError
from afm_scale.core.random import Positions
from afm_scale.data.affine import AffineConfig, affines_at, moved
from afm_scale.data.description import ImageContent
from afm_scale.data.images import WebDatasetConfig, mirrored_at
from afm_scale.data.shards import PackedShards
from afm_scale.data.transforms import decode_checked, to_pixels
from afm_scale.data.webdataset import WebDatasetSource
from afm_scale.packing.writer import Packing
from tests.data.small import encoded, packed_images, picture
from tests.data.small_sources import BATCH, NUM_SAMPLES, SEED, damaged, pack_numbered, samples_at, stream

ROOT = Path(__file__).parents[2]
Build = Callable[..., WebDatasetSource]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_numbered(tmp_path_factory.mktemp("images") / "packed")


@pytest.fixture
def build(folder: Path) -> Iterator[Build]:
    sources = []

    def build(rank: int = 0, world_size: int = 1, consumed: int = 0, **changes: object) -> WebDatasetSource:
        settings = {"folder": folder, "size": 8, "num_classes": NUM_SAMPLES, "global_batch": BATCH, "workers": 1}
        config = WebDatasetConfig(**settings | changes)
        source = WebDatasetSource(config, seed=SEED, rank=rank, world_size=world_size, device="cpu")
        source.load_state_dict({"consumed": consumed})
        sources.append(source)
        return source

    yield build
    for source in sources:
        source.close()


def test_a_batch_is_what_decoding_by_hand_gives_at_each_position(build: Build, folder: Path) -> None:
    shards = PackedShards(folder)
    batches = list(islice(build(1, 3, mirror=False, workers=2), 3))
    for turn, batch in enumerate(batches):
        samples = samples_at(turn * BATCH, BATCH)[1::3]
        assert torch.equal(batch.y, samples) and batch.y.dtype == torch.int64
        by_hand = torch.stack([to_pixels(decode_checked(shards.read(int(sample))), 8) for sample in samples])
        assert batch.x.dtype == torch.float32
        assert torch.equal(batch.x, by_hand / 127.5 - 1)


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 3), (3, 1)])
def test_neither_workers_nor_reading_ahead_change_anything(build: Build, workers: int, prefetch: int) -> None:
    wanted = list(islice(build(workers=2, prefetch=2), 5))
    found = list(islice(build(workers=workers, prefetch=prefetch), 5))
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_sample_comes_exactly_once_per_epoch(build: Build, world_size: int) -> None:
    for workers in (1, 2, 3):
        labels = stream(build, world_size, num_turns=5, workers=workers)  # 120 samples, four epochs
        for epoch in labels.split(NUM_SAMPLES):
            assert sorted(epoch.tolist()) == list(range(NUM_SAMPLES))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_a_position_saved_by_four_ranks_goes_on_at_any_number_of_them(build: Build, world_size: int) -> None:
    begun = stream(build, 4, num_turns=2)
    source = build(2, 4, workers=2, prefetch=2)  # it reads far ahead of what it hands out
    list(islice(source, 2))
    rest = stream(build, world_size, num_turns=3, **source.state_dict())
    labels = torch.cat((begun, rest))
    assert torch.equal(labels, samples_at(0, 5 * BATCH))
    for epoch in labels.split(NUM_SAMPLES):
        assert sorted(epoch.tolist()) == list(range(NUM_SAMPLES))


def test_two_turns_in_a_row_hold_different_samples(build: Build) -> None:
    discriminator, generator = islice(build(global_batch=15), 2)
    assert not set(discriminator.y.tolist()) & set(generator.y.tolist())


def test_what_was_read_ahead_does_not_count_and_is_forgotten_by_a_new_iterator(build: Build) -> None:
    source = build(workers=2, prefetch=3)
    next(iter(source))
    assert source.state_dict() == {"consumed": BATCH}
    assert torch.equal(next(iter(source)).y, samples_at(BATCH, BATCH))


def test_closing_ends_the_workers_at_once(build: Build) -> None:
    source = build(workers=2)
    before = set(multiprocessing.active_children())
    next(iter(source))
    batches = iter(source)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 3
    assert not workers & set(multiprocessing.active_children())
    with pytest.raises(AssertionError, match="the source was closed"):
        next(batches)


def test_a_worker_that_was_killed_is_an_error_that_says_what_to_lower(build: Build) -> None:
    before = set(multiprocessing.active_children())
    batches = iter(build())
    next(batches)
    for worker in set(multiprocessing.active_children()) - before:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="was killed, .*lower data.workers or data.prefetch"):
        list(islice(batches, 10))  # those already decoded may still come


def test_a_worker_killed_while_it_held_the_loaders_lock_hangs_nothing(build: Build) -> None:
    before = set(multiprocessing.active_children())
    source = build()
    batches = iter(source)
    next(batches)
    lock = source._workers._turns._workers_done_event._event._cond  # workers take it for a moment in every round
    holder = threading.Thread(target=lock.acquire)  # never released: as by a process that is no more
    holder.start()
    holder.join()
    for worker in set(multiprocessing.active_children()) - before:
        os.kill(worker.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(DataError, match="was killed"):
        list(islice(batches, 10))
    assert time.monotonic() - began < 30
    assert not set(multiprocessing.active_children()) - before


def test_a_broken_sample_is_one_clean_error(build: Build, tmp_path: Path) -> None:
    packed_images(tmp_path / "packed", num_samples=NUM_SAMPLES, num_classes=NUM_SAMPLES, size=8)
    batches = iter(build(folder=damaged(tmp_path / "packed", 17), workers=2))
    with pytest.raises(DataError) as caught:
        list(islice(batches, 2))
    told = str(caught.value)
    assert "shard-000001.tar, sample 000000017: the bytes are not those that were packed" in told
    assert "Traceback" not in told and "\n" not in told
    assert type(caught.value) is DataError


def test_an_image_that_cannot_be_decoded_is_named_with_the_reason(build: Build, tmp_path: Path) -> None:
    """Its bytes are those that were packed, so that only the decoder can find it."""
    packing = Packing(tmp_path / "packed", {}, ImageContent(size=None, encoding="original"))
    packing.begin()
    with packing.shard(0) as writer:
        writer.add(0, 0, {"png": encoded(picture(0))})
        writer.add(1, 1, {"jpg": encoded(picture(1), "JPEG")[:-40]})
    packing.finish(1, ["a", "b"])
    settings = {"folder": tmp_path / "packed", "num_classes": 2, "global_batch": 2}
    with pytest.raises(DataError, match="shard-000000.tar, sample 000000001: is corrupt or truncated"):
        next(iter(build(**settings)))
    source = build(**settings, on_error="skip")
    assert next(iter(source)).y.tolist() == [0, 0]  # the label is that of the sample that is used
    reported = source.take_skipped()
    assert len(reported) >= 1
    for skipped in reported:
        assert skipped.reason.startswith("is corrupt or truncated") and "sample 000000000" in skipped.substitute
    assert source.take_skipped() == []  # they are reported once


def test_broken_samples_are_skipped_alike_on_every_run_and_at_any_number_of_ranks(build: Build, tmp_path: Path) -> None:
    packed_images(tmp_path / "packed", num_samples=NUM_SAMPLES, num_classes=NUM_SAMPLES, size=8)
    settings = {"folder": damaged(tmp_path / "packed", 2, 11, 17, 29), "on_error": "skip", "workers": 2}

    def seen(world_size: int) -> tuple[list[int], list[list]]:
        sources = [build(rank, world_size, **settings) for rank in range(world_size)]
        turns, skipped = [], []
        for batches in islice(zip(*sources, strict=True), 5):
            turns.append(torch.stack([batch.y for batch in batches], dim=1).flatten().tolist())
            assert len(turns[-1]) == BATCH
            found = [one for source in sources for one in source.take_skipped()]
            skipped.append(sorted((one.place, one.reason, one.substitute) for one in found))
        for source in sources:
            source.close()
        return turns, skipped

    turns, skipped = seen(1)
    wanted, found = samples_at(0, 5 * BATCH), torch.tensor(turns).flatten()
    assert {2, 11, 17, 29} == set(wanted[wanted != found].tolist())
    assert not {2, 11, 17, 29} & set(found.tolist())
    assert len([one for turn in skipped for one in turn]) >= 4 * 4  # four epochs
    assert seen(1) == seen(2) == seen(3) == (turns, skipped)


AFFINE = AffineConfig(probability=0.7)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 JPEGs of 40 x 30 and 30 x 40 pixels, each of its own class, packed as they are."""
    out = tmp_path_factory.mktemp("originals") / "packed"
    packing = Packing(out, {}, ImageContent(size=None, encoding="original"))
    packing.begin()
    with packing.shard(0) as writer:
        for number in range(NUM_SAMPLES):
            image = picture(number) if number % 2 else picture(number, width=30, height=40)
            writer.add(number, number, {"jpg": encoded(image, "JPEG")})
    packing.finish(1, [str(number) for number in range(NUM_SAMPLES)])
    return out


def pixels(build: Build, world_size: int, num_turns: int, **changes: object) -> Tensor:
    """The images of the global stream."""
    shares = []
    for rank in range(world_size):
        source = build(rank, world_size, **changes)
        shares.append(torch.stack([batch.x for batch in islice(source, num_turns)]))
        source.close()
    return torch.stack(shares, dim=2).flatten(0, 2)


@pytest.mark.parametrize("kind", ["folder", "originals"])
def test_an_image_is_moved_whole_then_cropped_then_mirrored(
    build: Build, kind: str, request: pytest.FixtureRequest
) -> None:
    packed = request.getfixturevalue(kind)
    shards, positions = PackedShards(packed), Positions(0, 1, 2 * BATCH)
    affines, mirrored = affines_at(AFFINE, positions, seed=SEED), mirrored_at(positions, seed=SEED)
    assert None in affines
    by_hand = []
    for sample, affine, is_mirrored in zip(samples_at(0, 2 * BATCH).tolist(), affines, mirrored, strict=True):
        image = decode_checked(shards.read(sample))
        square = to_pixels(image if affine is None else moved(image, affine), 8)
        by_hand.append(square.flip(-1) if is_mirrored else square)
    found = pixels(build, 1, 2, folder=packed, affine=AFFINE)
    assert torch.equal(found, torch.stack(by_hand) / 127.5 - 1)


@pytest.mark.parametrize("kind", ["folder", "originals"])
def test_an_affine_of_probability_zero_is_none(build: Build, kind: str, request: pytest.FixtureRequest) -> None:
    packed = request.getfixturevalue(kind)
    without = pixels(build, 1, 2, folder=packed)
    assert torch.equal(pixels(build, 1, 2, folder=packed, affine=AffineConfig(probability=0)), without)
    assert not torch.equal(pixels(build, 1, 2, folder=packed, affine=AFFINE), without)


def test_moves_do_not_depend_on_workers_or_ranks_and_go_on_after_a_resume(build: Build, originals: Path) -> None:
    settings = {"folder": originals, "affine": AFFINE}
    whole = pixels(build, 1, 4, **settings)
    assert torch.equal(pixels(build, 1, 4, workers=2, prefetch=3, **settings), whole)
    assert torch.equal(pixels(build, 2, 4, workers=2, **settings), whole)
    begun = build(1, 2, **settings)
    list(islice(begun, 2))
    assert torch.equal(pixels(build, 3, 2, **begun.state_dict(), **settings), whole[2 * BATCH:])


def test_a_substitute_is_moved_as_the_sample_would_have_been(build: Build, tmp_path: Path) -> None:
    """The draw is the position's, whatever lies there."""
    packed_images(tmp_path / "packed", num_samples=NUM_SAMPLES, num_classes=NUM_SAMPLES, size=8)
    shards = PackedShards(damaged(tmp_path / "packed", 2, 11, 17, 29))
    settings = {"folder": tmp_path / "packed", "affine": AFFINE, "on_error": "skip", "mirror": False}
    positions = Positions(0, 1, 3 * BATCH)
    source = build(workers=2, **settings)
    batches = list(islice(source, 3))
    used, found = torch.cat([batch.y for batch in batches]), torch.cat([batch.x for batch in batches])
    affines, replaced = affines_at(AFFINE, positions, seed=SEED), used != samples_at(0, 3 * BATCH)
    assert {affines[place] is None for place in replaced.nonzero().flatten()} == {False, True}
    for sample, affine, x in zip(used.tolist(), affines, found, strict=True):
        image = decode_checked(shards.read(sample))
        by_hand = to_pixels(image if affine is None else moved(image, affine), 8)
        assert torch.equal(x, by_hand / 127.5 - 1)
    assert len(source.take_skipped()) >= int(replaced.sum())
    assert torch.equal(pixels(build, 2, 3, **settings), found)


PROGRAM = """
import os, signal, sys
from pathlib import Path
from afm_scale.data.images import WebDatasetConfig, mirrored_at
from afm_scale.data.webdataset import WebDatasetSource
got = []
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(signum, lambda signum, frame: got.append(signum))
config = WebDatasetConfig(folder=Path(sys.argv[1]), size=8, num_classes=30, global_batch=24, workers=2, prefetch=1)
source = WebDatasetSource(config, seed=0, rank=0, world_size=1, device="cpu")
batches = iter(source)
next(batches)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    next(batches)
print(len(got), flush=True)
sys.stdin.readline()
"""


def processes_of(group: int) -> list[int]:
    """Those of a process group that have not ended (the third field after the name is the group)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_signals_to_the_group_spare_the_workers_and_the_death_of_the_trainer_ends_them(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder], cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.killpg(process.pid, signum)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "3\n", process.stderr.read()
        assert len(processes_of(process.pid)) >= 4  # the program, the server and two workers at least
        process.kill()
        deadline = time.monotonic() + 10
        while processes_of(process.pid):
            assert time.monotonic() < deadline, processes_of(process.pid)
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
