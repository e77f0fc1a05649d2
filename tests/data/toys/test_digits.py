from __future__ import annotations

from itertools import islice

import torch
from sklearn.datasets import load_digits

from afm_scale.data.toys.digits import DigitsConfig, DigitsSource, digits_of, held_out_digits, training_digits


def source(**changes: int) -> DigitsSource:
    ranks = {"rank": 0, "world_size": 1} | changes
    return DigitsSource(DigitsConfig(global_batch=6), seed=0, device="cpu", **ranks)


def test_the_two_parts_are_the_whole_set_and_share_no_image() -> None:
    pixels, labels = load_digits(return_X_y=True)
    parts = training_digits(), held_out_digits()
    rows = [
        (*image.flatten().mul(8).add(8).int().tolist(), label.item())
        for part in parts for image, label in zip(part.x, part.y, strict=True)
    ]
    assert sorted(rows) == sorted((*map(int, image), label) for image, label in zip(pixels, labels, strict=True))
    assert [len(part.y) for part in parts] == [1438, 359]


def test_a_fifth_of_every_class_is_held_out() -> None:
    held_out, whole = torch.bincount(held_out_digits().y), torch.bincount(torch.from_numpy(load_digits().target))
    assert (held_out - whole / 5).abs().max() <= 1


def test_pixels_are_float32_and_reach_from_minus_one_to_one() -> None:
    digits = training_digits()
    assert digits.x.dtype == torch.float32 and digits.y.dtype == torch.int64
    assert digits.x.shape == (1438, 1, 8, 8) and digits.x.aminmax() == (-1, 1)


def test_an_epoch_of_batches_holds_every_training_digit_with_its_label() -> None:
    digits = training_digits()
    batches = list(islice(source(), 1438 // 6))
    x, y = torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])
    nearest = torch.cdist(x.flatten(1), digits.x.flatten(1)).argmin(1)
    assert len(nearest.unique()) == len(nearest) == 1434
    assert torch.equal(digits.x[nearest], x) and torch.equal(digits.y[nearest], y)


def test_two_ranks_share_the_batch_of_one() -> None:
    whole = next(iter(source()))
    for rank in range(2):
        part = next(iter(source(rank=rank, world_size=2)))
        assert torch.equal(part.x, whole.x[rank::2]) and torch.equal(part.y, whole.y[rank::2])


def test_seeds_change_the_order_and_not_the_split() -> None:
    first, second = (
        next(iter(DigitsSource(DigitsConfig(global_batch=1438), seed=seed, rank=0, world_size=1, device="cpu")))
        for seed in (0, 1)
    )
    assert not torch.equal(first.x, second.x)
    assert sorted(first.x.flatten(1).tolist()) == sorted(second.x.flatten(1).tolist())


def test_what_settings_are_chosen_by_is_a_fifth_of_every_class_of_the_training_digits() -> None:
    parts = digits_of("train"), digits_of("tune")
    rows = sorted(row for part in parts for row in part.x.flatten(1).tolist())
    assert rows == sorted(training_digits().x.flatten(1).tolist()) and [len(part.y) for part in parts] == [1151, 287]
    tune, whole = torch.bincount(parts[1].y), torch.bincount(training_digits().y)
    assert (tune - whole / 5).abs().max() <= 1


def test_a_source_of_a_part_trains_on_it_alone_and_holds_out_the_rest() -> None:
    config = DigitsConfig(global_batch=1151, part="train")
    part = DigitsSource(config, seed=0, rank=0, world_size=1, device="cpu")
    assert sorted(next(iter(part)).x.flatten(1).tolist()) == sorted(digits_of("train").x.flatten(1).tolist())
    assert torch.equal(part.held_out().batch.x, digits_of("tune").x)
    assert torch.equal(source().held_out().batch.x, held_out_digits().x)
