from __future__ import annotations

import pytest

from afm_scale.core.batch_size import microbatch_size
from afm_scale.core.errors import ConfigError


def test_the_global_batch_is_cut_over_ranks_and_their_microbatches() -> None:
    assert microbatch_size(24, 3) == 8
    assert microbatch_size(24, 3, 1) == 8
    assert microbatch_size(24, 3, 4) == 2


@pytest.mark.parametrize(("numbers", "message"), [
    ((0, 2), "data.global_batch is 0; it counts samples and must be at least 1"),
    ((7, 2), "data.global_batch 7 is not divisible by 2 ranks; use 6 or 8, or a number of ranks that divides 7"),
    ((1, 2), "use 2, or a number of ranks"),
    ((7, 2, 2), r"divisible by ranks 2 x loop.accumulation 2 = 4; use data.global_batch=4 or 8, or change loop.acc"),
    ((-3, 2, 1), "use data.global_batch=2, or change"),
])
def test_a_batch_that_cannot_be_cut_is_told_the_nearest_that_can(numbers: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        microbatch_size(*numbers)
