"""The order in which generated images go into an npz."""

from __future__ import annotations

from torch import Tensor

from ..core.random import permutation


def npz_order(num_samples: int) -> Tensor:
    """The number of the image at each place of the npz, [num_samples] int64: a permutation, always the same one.

    ADM's evaluator takes the inception score of every 5,000 images in a row. In the order of their numbers these may
    be of a part of the classes only, which lowers the score; shuffled, they are like the whole.
    """
    return permutation(num_samples, "npz order")
