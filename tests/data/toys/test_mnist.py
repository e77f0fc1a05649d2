from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from afm_scale.core.errors import ConfigError, DataError
from afm_scale.core.random import Positions
from afm_scale.data.toys.mnist import MnistConfig, MnistSource, read_mnist
from tests.data.small import mnist_file

PARTS = {"train": 160, "tune": 20, "test": 20}
REAL = os.environ.get("AFM_SCALE_MNIST")


def source(file: Path | None, *, part: str = "train", seed: int = 0) -> MnistSource:
    config = MnistConfig(global_batch=10, file=file, part=part)
    return MnistSource(config, seed=seed, rank=0, world_size=1, device="cpu")


def test_the_parts_are_whole_and_apart_whatever_the_seed(tmp_path: Path) -> None:
    file = mnist_file(tmp_path / "digits.npz")
    with np.load(file) as arrays:
        pixels = torch.from_numpy(arrays["images"]).unsqueeze(1)
    parts = {part: read_mnist(file, part) for part in PARTS}
    assert {part: len(batch.y) for part, batch in parts.items()} == PARTS
    of_ten = torch.arange(200) % 10
    for part, chosen in (("train", of_ten < 8), ("tune", of_ten == 8), ("test", of_ten == 9)):
        assert torch.equal(parts[part].x, pixels[chosen].float() / 127.5 - 1)
        assert torch.equal(torch.bincount(parts[part].y), torch.full((10,), PARTS[part] // 10))


def test_a_source_gives_every_image_of_its_part_once_an_epoch(tmp_path: Path) -> None:
    file = mnist_file(tmp_path / "digits.npz")
    for part, count in PARTS.items():
        drawn, whole = source(file, part=part, seed=3).at(Positions(0, 1, count)), read_mnist(file, part)
        nearest = torch.cdist(drawn.x.flatten(1), whole.x.flatten(1)).argmin(1)
        assert torch.equal(nearest.sort().values, torch.arange(count)) and not torch.equal(drawn.x, whole.x)
        assert torch.equal(whole.x[nearest], drawn.x) and torch.equal(whole.y[nearest], drawn.y)
        assert drawn.x.dtype == torch.float32 and drawn.y.dtype == torch.int64 and drawn.x.abs().max() <= 1


def test_what_it_holds_out_is_for_settings_and_not_for_the_report(tmp_path: Path) -> None:
    file = mnist_file(tmp_path / "digits.npz")
    held_out = source(file).held_out()
    assert torch.equal(held_out.batch.x, read_mnist(file, "tune").x) and "tune" in held_out.name


def test_without_a_file_it_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match=r"data.file is null.*data.file=FILE.npz"):
        source(None)


GOOD = {"images": np.zeros((20, 28, 28), np.uint8), "labels": np.zeros(20, np.uint8)}


@pytest.mark.parametrize(("arrays", "told"), [
    ({"images": GOOD["images"]}, "has no array 'labels'"),
    (GOOD | {"images": np.zeros((20, 8, 8), np.uint8)}, r"images \[20, 8, 8\] uint8"),
    (GOOD | {"images": np.zeros((20, 28, 28), np.float32)}, r"images \[20, 28, 28\] float32"),
    (GOOD | {"labels": np.zeros(19, np.uint8)}, r"labels \[19\] uint8"),
    (GOOD | {"labels": np.zeros(20, np.float64)}, r"labels \[20\] float64"),
    (GOOD | {"labels": np.full(20, 10, np.int64)}, "has the label 10"),
    (GOOD | {"labels": np.full(20, -1, np.int16)}, "has the label -1"),
    ({"images": GOOD["images"][:9], "labels": GOOD["labels"][:9]}, r"images \[9, 28, 28\].*at least ten"),
    (GOOD | {"labels": np.array([{}] * 20)}, "holds pickled Python objects"),
])
def test_a_file_of_anything_else_is_refused_and_says_what_is_wanted(
    arrays: dict, told: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(DataError, match=rf"data.file .*wrong.npz.*{told}") as caught:
        source(tmp_path / "wrong.npz")
    assert "wanted an .npz with images [N, 28, 28] uint8" in str(caught.value)


def test_a_missing_or_torn_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.npz is not there; wanted an .npz"):
        source(tmp_path / "nowhere.npz")
    whole = mnist_file(tmp_path / "digits.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name, data in (("torn", whole[:len(whole) // 2]), ("text", b"images"), ("empty", b"")):
        (tmp_path / f"{name}.npz").write_bytes(data)
    for name in ("torn.npz", "text.npz", "empty.npz", "one.npy"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            source(tmp_path / name)


@pytest.mark.skipif(REAL is None, reason="AFM_SCALE_MNIST does not name a file of 10,000 real digits")
def test_every_part_of_the_real_file_has_the_classes_in_the_same_shares() -> None:
    counts = {part: torch.bincount(read_mnist(Path(REAL), part).y, minlength=10) for part in PARTS}
    assert [int(count.sum()) for count in counts.values()] == [8000, 1000, 1000]
    for part in ("tune", "test"):
        assert (counts[part] - counts["train"] / 8).abs().max() <= 1
