"""The average's update over many tensors."""

from __future__ import annotations

import pytest
import torch

from afm_scale.ops.average import average_

SHAPES = ((3, 4), (5,), (0, 2), ())


@pytest.mark.parametrize("weight", [0.0, 1e-4, 0.5, 1.0])
def test_every_average_moves_by_its_share_of_the_way(weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    averages = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in SHAPES]
    weights = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in SHAPES]
    before, given = [tensor.clone() for tensor in averages], [tensor.clone() for tensor in weights]
    average_(averages, weights, weight)
    for old, new, target, unchanged in zip(before, averages, weights, given, strict=True):
        torch.testing.assert_close(new, (1 - weight) * old + weight * target, rtol=1e-14, atol=1e-14)
        assert torch.equal(target, unchanged)


def test_with_weight_one_it_is_a_copy_bit_for_bit() -> None:
    averages, weights = [torch.full((3,), 1e20)], [torch.tensor([1.0, 1e-20, 3.0])]
    average_(averages, weights, 1.0)
    assert torch.equal(averages[0], weights[0])
