from __future__ import annotations

import torch

from afm_scale.core.random import Positions
from afm_scale.core.types import Batch


def test_microbatches_of_samples_are_in_step_with_microbatches_of_positions() -> None:
    mine = Positions(offset=2, stride=3, count=7)
    numbers = torch.arange(mine.count) * mine.stride + mine.offset  # each sample is its position
    batch = Batch(numbers.view(-1, 1, 1, 1).double(), numbers)
    for start in range(3):
        part, positions = batch.every(start, 3), mine.every(start, 3)
        expected = torch.arange(positions.count) * positions.stride + positions.offset
        assert torch.equal(part.y, expected)
        assert torch.equal(part.x.flatten(), expected.double())
