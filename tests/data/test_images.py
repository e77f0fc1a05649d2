"""What all sources of images share: which data sets they take, and what stands in for a broken sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import ConfigError, DataError
from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.typed import build
from afm_scale.data.description import LatentContent
from afm_scale.data.images import ImagesConfig, ImageSource, WebDatasetConfig, read_or_substitute
from afm_scale.data.shards import PackedShards, SampleError
from afm_scale.data.source import Skipped
from afm_scale.packing.writer import Packing
from tests.data.small import packed_images


class Plain(ImageSource):
    """Every pixel of a sample, but for its left column, is its number."""

    def decoded(self) -> Iterator[tuple[Tensor, Tensor, Sequence[Skipped]]]:
        for positions in self.cursor.upcoming():
            numbers = self.order.indices(positions)
            pixels = numbers.to(torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
            pixels[..., 0] = 255
            yield pixels, self.shards.index.label[numbers], ()

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images of 4 pixels, in 3 classes."""
    out = tmp_path_factory.mktemp("images") / "packed"
    packed_images(out, size=4)
    return out


def source(folder: Path, *, rank: int = 0, world_size: int = 1, **changes: object) -> Plain:
    config = ImagesConfig(**{"folder": folder, "size": 4, "num_classes": 3, "global_batch": 6} | changes)
    return Plain(config, seed=5, rank=rank, world_size=world_size, device="cpu")


def refuse(shards: PackedShards, *broken: int):
    def read(sample: int) -> int:
        if sample in broken:
            raise SampleError(shards.place(sample), "broken")
        return sample * 10

    return read


def test_a_sample_that_can_be_read_is_the_one_that_is_used(folder: Path) -> None:
    shards = PackedShards(folder)
    assert read_or_substitute(shards, 4, refuse(shards, 5), seed=0, on_error="skip") == (4, 40, [])


def test_the_substitute_is_a_function_of_the_seed_and_the_sample_alone(folder: Path) -> None:
    def substitutes(seed: int, samples: Sequence[int]) -> dict[int, int]:
        shards = PackedShards(folder)
        read = refuse(shards, *range(9))
        return {sample: read_or_substitute(shards, sample, read, seed=seed, on_error="skip")[0] for sample in samples}

    first = substitutes(1, range(9))
    assert first == substitutes(1, list(reversed(range(9))))  # whatever was read before
    assert set(first.values()) <= {9, 10, 11}
    assert first != substitutes(2, range(9))


def test_all_that_was_refused_on_the_way_to_a_substitute_is_reported(folder: Path) -> None:
    shards = PackedShards(folder)
    read = refuse(shards, *range(9))
    chains = [read_or_substitute(shards, sample, read, seed=1, on_error="skip") for sample in range(9)]
    assert max(len(skipped) for _, _, skipped in chains) > 1
    for sample, (used, value, skipped) in enumerate(chains):
        assert value == used * 10
        assert skipped[0].place == shards.place(sample)
        assert {(one.reason, one.substitute) for one in skipped} == {("broken", shards.place(used))}


def test_without_leave_to_skip_the_first_broken_sample_ends_it(folder: Path) -> None:
    shards = PackedShards(folder)
    with pytest.raises(SampleError, match="shard-000001.tar, sample 000000005: broken; .*data.on_error=skip"):
        read_or_substitute(shards, 5, refuse(shards, 5), seed=0, on_error="stop")


def test_a_data_set_of_which_nothing_can_be_read_is_an_error_even_if_errors_are_skipped(folder: Path) -> None:
    shards = PackedShards(folder)
    with pytest.raises(DataError, match="1000 samples in a row cannot be read, the last: .*broken"):
        read_or_substitute(shards, 0, refuse(shards, *range(12)), seed=0, on_error="skip")


def test_pixels_are_in_minus_one_to_one_and_a_draw_is_mirrored_by_its_position_alone(folder: Path) -> None:
    whole = next(iter(source(folder)))
    mirrored = KeyedDraws("mirror", 5, positions=Positions(0, 1, 6)).uniform("mirror") < 0.5
    assert mirrored.any() and not mirrored.all()
    white = torch.where(mirrored, whole.x[:, 0, 0, -1], whole.x[:, 0, 0, 0])
    assert white.eq(1).all()
    numbers = Plain.decoded(source(folder)).__next__()[0][:, 0, 0, 1]
    torch.testing.assert_close(whole.x[:, 0, 0, 1], numbers / 127.5 - 1)
    parts = [next(iter(source(folder, rank=rank, world_size=3))) for rank in range(3)]
    assert torch.equal(torch.stack([part.x for part in parts], dim=1).flatten(0, 1), whole.x)
    plain = next(iter(source(folder, mirror=False)))
    assert plain.x[:, 0, 0, 0].eq(1).all()


def test_the_position_counts_what_was_handed_out(folder: Path) -> None:
    images = source(folder)
    batches = iter(images)
    assert images.state_dict() == {"consumed": 0}
    next(batches), next(batches)
    assert images.state_dict() == {"consumed": 12}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_classes": 10}, "has 3 classes, data.num_classes is 10; set data.num_classes=3"),
        ({"size": 8}, "images of 4 pixels, data.size is 8; set data.size=4, or pack with --size 8"),
    ],
)
def test_a_data_set_that_does_not_fit_the_recipe_is_refused(folder: Path, changes: dict, told: str) -> None:
    with pytest.raises(DataError, match=told):
        source(folder, **changes)


def test_latents_are_not_taken_for_images(tmp_path: Path) -> None:
    content = LatentContent(shape=(1, 2, 2), vae="some", vae_sha256="0" * 64, scale=1.0)
    packing = Packing(tmp_path / "latents", {}, content)
    packing.begin()
    with packing.shard(0) as writer:
        writer.add(0, 0, {"plain.npy": b"0" * 80, "mirrored.npy": b"1" * 80})
    packing.finish(1, ["one"])
    with pytest.raises(DataError, match="holds latents, this source reads images; change data.kind or data.folder"):
        source(tmp_path / "latents", num_classes=1)


@pytest.mark.parametrize("name", ["size", "num_classes", "workers", "prefetch"])
def test_numbers_below_one_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: found 0, wanted a whole number from 1 to"):
        build(WebDatasetConfig, {"folder": str(folder), "global_batch": 4, name: 0})


def test_a_missing_shard_is_refused_by_name_unless_errors_are_skipped(tmp_path: Path) -> None:
    packed_images(tmp_path / "packed", size=4)
    (tmp_path / "packed" / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match="shard-000001.tar: No such file or directory; .*data.on_error=skip"):
        source(tmp_path / "packed")
    source(tmp_path / "packed", on_error="skip")
