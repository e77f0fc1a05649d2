"""Latents from shards: which records are read, the posterior's statistics, what is refused, and the position."""

from __future__ import annotations

import io
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from afm_scale.core.errors import DataError
from afm_scale.data.description import LatentContent
from afm_scale.data.latents import WEIGHTS_NAME, LatentsConfig, LatentsSource, Records
from afm_scale.data.shards import PackedShards, SampleError
from afm_scale.packing.writer import Packing
from tests.data.small import packed_images

SHAPE = (2, 3, 4)
NUM = 20
WEIGHTS = b"the weights of an autoencoder"


def record(number: int, member: int, deviation: float) -> np.ndarray:
    """The mean says which record it is; element by element it differs too."""
    mean = 10 * number + 5 * member + np.arange(24).reshape(SHAPE) / 8
    return np.stack([mean, np.full(SHAPE, deviation)]).astype(np.float16)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def packed_latents(folder: Path, *, deviation: float = 0.0, odd: dict[int, bytes] | None = None) -> Path:
    content = LatentContent(shape=SHAPE, vae="tiny", vae_sha256=sha256(WEIGHTS).hexdigest(), scale=0.5)
    packing = Packing(folder, {}, content)
    packing.begin()
    for shard in range(2):
        with packing.shard(shard) as writer:
            for number in range(shard * NUM // 2, (shard + 1) * NUM // 2):
                members = [npy(record(number, member, deviation)) for member in range(2)]
                members[0] = (odd or {}).get(number, members[0])
                writer.add(number, number % 3, {"plain.npy": members[0], "mirrored.npy": members[1]})
    packing.finish(2, ["a", "b", "c"])
    return folder


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Path:
    return packed_latents(tmp_path_factory.mktemp("latents") / "exact")


def source(folder: Path, *, rank: int = 0, world_size: int = 1, seed: int = 0, **settings) -> LatentsSource:
    settings = {"global_batch": 4, "shape": SHAPE, "num_classes": 3, "vae": "tiny", "scale": 0.5, **settings}
    return LatentsSource(
        LatentsConfig(folder=folder, **settings), seed=seed, rank=rank, world_size=world_size, device="cpu"
    )


def take(latents: LatentsSource, turns: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(islice(latents, turns))
    latents.close()
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])


def identities(x: torch.Tensor) -> tuple[list[int], list[int]]:
    """(sample numbers, members) of latents without noise, exactly equal to what was stored."""
    codes = (x[:, 0, 0, 0] / 0.5 / 5).round().to(torch.int64)
    numbers, members = (codes // 2).tolist(), (codes % 2).tolist()
    stored = torch.stack([torch.from_numpy(record(n, m, 0)[0]) for n, m in zip(numbers, members, strict=True)])
    assert torch.equal(x, 0.5 * stored.float())
    return numbers, members


def test_an_epoch_holds_every_sample_once_with_its_label(exact):
    x, y = take(source(exact), NUM // 4)
    numbers, members = identities(x)
    assert sorted(numbers) == list(range(NUM)) and numbers != list(range(NUM))
    assert y.tolist() == [number % 3 for number in numbers] and y.dtype == torch.int64
    assert set(members) == {0, 1}


def test_the_mirror_image_is_drawn_anew_and_half_the_time(exact):
    x, _ = take(source(exact), 40 * NUM // 4)
    numbers, members = identities(x)
    assert abs(np.mean(members) - 0.5) < 4 * 0.5 / (40 * NUM) ** 0.5
    assert all({m for n, m in zip(numbers, members, strict=True) if n == number} == {0, 1} for number in range(NUM))
    assert set(identities(take(source(exact, mirror=False), NUM)[0])[1]) == {0}


def test_a_latent_is_a_sample_of_the_posterior(tmp_path):
    x, _ = take(source(packed_latents(tmp_path / "wide", deviation=3.0), mirror=False, global_batch=500), 8)
    still, _ = take(source(packed_latents(tmp_path / "still"), mirror=False, global_batch=500), 8)
    noise = (x - still) / 0.5
    assert abs(noise.mean()) < 4 * 3 / noise.numel() ** 0.5
    assert noise.std() == pytest.approx(3, rel=0.01)
    assert len(torch.unique(noise.flatten(1), dim=0)) == len(noise)  # drawn anew every time


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_exactly_the_stream_of_one(tmp_path, world_size):
    folder = packed_latents(tmp_path / "wide", deviation=3.0)
    whole, labels = take(source(folder), 12)
    shares = [take(source(folder, rank=rank, world_size=world_size), 12) for rank in range(world_size)]
    assert torch.equal(torch.stack([x for x, _ in shares], dim=1).flatten(0, 1), whole)
    assert torch.equal(torch.stack([y for _, y in shares], dim=1).flatten(), labels)


def test_a_resumed_stream_goes_on_at_another_world_size(tmp_path):
    folder = packed_latents(tmp_path / "wide", deviation=3.0)
    whole, _ = take(source(folder), 8)
    first = source(folder, rank=1, world_size=4)
    list(islice(first, 3))
    state = first.state_dict()
    first.close()
    assert state == {"consumed": 12}  # what was read ahead does not count
    rest = []
    for rank in range(2):
        resumed = source(folder, rank=rank, world_size=2)
        resumed.load_state_dict(state)
        rest.append(take(resumed, 5)[0])
    assert torch.equal(torch.stack(rest, dim=1).flatten(0, 1), whole[12:])


@pytest.mark.parametrize("settings, words", [
    ({"scale": 0.18215}, r"encoded for scale 0.5, data.scale is 0.18215; set data.scale=0.5, or encode again"),
    ({"vae": "other"}, r"encoded with the autoencoder 'tiny', data.vae is 'other'; set data.vae=tiny"),
    ({"shape": (2, 4, 3)}, r"of shape \[2, 3, 4\], data.shape is \[2, 4, 3\]; set data.shape="),
    ({"num_classes": 5}, r"has 3 classes, data.num_classes is 5"),
])
def test_latents_of_another_encoding_are_refused(exact, settings, words):
    with pytest.raises(DataError, match=words):
        source(exact, **settings)


def test_a_folder_of_weights_is_compared_by_its_sum(exact, tmp_path):
    (tmp_path / WEIGHTS_NAME).write_bytes(WEIGHTS)
    identities(take(source(exact, vae=str(tmp_path)), 1)[0])
    (tmp_path / WEIGHTS_NAME).write_bytes(WEIGHTS[:-1] + b"t")
    with pytest.raises(DataError, match=f"{sha256(WEIGHTS).hexdigest()}.*give the autoencoder it was encoded with"):
        source(exact, vae=str(tmp_path))
    (tmp_path / WEIGHTS_NAME).unlink()
    with pytest.raises(DataError, match="a folder without diffusion_pytorch_model.safetensors"):
        source(exact, vae=str(tmp_path))


def damage(folder: Path, *numbers: int) -> None:
    """Flips a byte of both members of samples."""
    shards = PackedShards(folder)
    for number in numbers:
        for member in range(2):
            with (folder / shards.description.shards[int(shards.index.shard[number])].name).open("r+b") as file:
                place = int(shards.index.offset[number, member]) + 150
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 1]))


def test_a_damaged_sample_ends_the_run_at_the_batch_it_lies_in(tmp_path, exact):
    numbers, _ = identities(take(source(exact), NUM // 4)[0])
    folder = packed_latents(tmp_path / "bad")
    damage(folder, numbers[9])
    latents = source(folder, prefetch=4)
    stream = iter(latents)
    assert identities(torch.cat([next(stream).x, next(stream).x]))[0] == numbers[:8]
    with pytest.raises(SampleError, match=f"sample {numbers[9]:09d}: the bytes are not those that were packed"):
        next(stream)
    assert latents.state_dict() == {"consumed": 8}
    latents.close()


def test_skipping_replaces_a_damaged_sample_alike_on_any_number_of_ranks(tmp_path, exact):
    folder = packed_latents(tmp_path / "bad")
    damage(folder, 3, 17)
    latents = source(folder, on_error="skip")
    x, y = take(latents, NUM // 4)
    numbers, good = identities(x)[0], identities(take(source(exact), NUM // 4)[0])[0]
    changed = [place for place in range(NUM) if numbers[place] != good[place]]
    assert sorted(good[place] for place in changed) == [3, 17]
    assert y.tolist() == [number % 3 for number in numbers]
    skipped = latents.take_skipped()
    assert latents.take_skipped() == []
    assert {3, 17} == {int(one.place[-9:]) for one in skipped} and len(skipped) >= 2
    assert {numbers[place] for place in changed} <= {int(one.substitute[-9:]) for one in skipped}
    shares = [take(source(folder, on_error="skip", rank=rank, world_size=2), NUM // 4)[0] for rank in range(2)]
    assert torch.equal(torch.stack(shares, dim=1).flatten(0, 1), x)


@pytest.mark.parametrize("array, words", [
    (np.zeros((2, 2, 3, 4), np.float32), r"float32 \[2, 2, 3, 4\], wanted float16 \[2, 2, 3, 4\]"),
    (np.zeros((2, 2, 4, 3), np.float16), r"float16 \[2, 2, 4, 3\], wanted"),
    (np.asfortranarray(np.zeros((2, 2, 3, 4), np.float16)), "in Fortran order"),
    (np.array([None]), "object"),
])
def test_a_record_of_another_kind_is_refused(tmp_path, array, words):
    folder = packed_latents(tmp_path / "odd", odd={number: npy(array) for number in range(NUM)})
    latents = source(folder, mirror=False)
    with pytest.raises(SampleError, match=words):
        next(iter(latents))
    latents.close()


def test_records_cut_short_or_without_a_header_are_refused():
    records = Records((2, *SHAPE))
    whole = npy(record(1, 0, 1.0))
    assert bytes(records.values(whole)) == record(1, 0, 1.0).tobytes()
    for data in (whole[:-1], whole + b"x", whole[3:], b""):
        with pytest.raises(ValueError):
            records.values(data)
    assert bytes(records.values(whole)) == record(1, 0, 1.0).tobytes()


def test_closing_ends_the_thread(exact):
    latents = source(exact, prefetch=8, global_batch=2000)
    stream = iter(latents)
    next(stream)
    threads = list(latents._reader._threads)
    latents.close()
    assert threads and not any(thread.is_alive() for thread in threads)


def test_latents_of_a_kind_that_is_not_wanted_are_refused(tmp_path):
    packed_images(tmp_path / "images")
    with pytest.raises(DataError, match="holds images, this source reads latents"):
        source(tmp_path / "images")
