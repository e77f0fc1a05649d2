from __future__ import annotations

import torch

from afm_scale.sampling.order import npz_order


def test_every_image_is_in_the_npz_once_and_always_at_the_same_place() -> None:
    order = npz_order(1000)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, npz_order(1000))


def test_every_part_of_the_npz_has_images_of_all_classes() -> None:
    labels = torch.arange(10_000) // 1000  # in the order of their numbers, ten classes one after another
    for part in labels[npz_order(10_000)].split(5000):
        counts = part.bincount(minlength=10)
        assert counts.min() > 400 and counts.max() < 600  # 500, standard deviation 16
