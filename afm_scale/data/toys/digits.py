"""Real handwritten digits without a download: scikit-learn's 1,797 images of 8x8 pixels, ten classes.

Pixels 0..16 become x / 8 - 1, in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import torch
from sklearn.datasets import load_digits

from ...core.random import Positions, permutation
from ...core.types import Batch
from ..order import EpochOrder, HeldOut, PositionedSource
from ..source import SourceConfig

NUM_CLASSES = 10
_SPLIT_SEED = 9


@dataclass(frozen=True, kw_only=True)
class DigitsConfig(SourceConfig):
    """The 1,438 training digits."""

    positioned: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    num_classes: ClassVar[int] = NUM_CLASSES
    kind: Literal["digits"] = "digits"


@cache
def _split() -> tuple[Batch, Batch]:
    """(training, held-out): of each class a random fifth is held out, whatever the seed of a run.

    The fifth is random because the images lie in order of writer (and, among the first of each, of class): every
    fifth by index holds 21 images of class 1 and 52 of class 3. The seed is the one, of the first forty, for which
    the Frechet distance between the two parts (0.417) is nearest the reference's, 0.42: a random split gives 0.30
    to 0.44, and a milder one would flatter whatever is measured against it.
    """
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).to(torch.float32).view(-1, 1, 8, 8) / 8 - 1
    y = torch.from_numpy(labels).to(torch.int64)
    shuffled = permutation(len(y), "digits", "held-out", _SPLIT_SEED)
    by_class = shuffled[torch.argsort(y[shuffled], stable=True)]
    held_out = torch.zeros(len(y), dtype=torch.bool)
    held_out[by_class[4::5]] = True
    return Batch(x[~held_out], y[~held_out]), Batch(x[held_out], y[held_out])


def training_digits() -> Batch:
    """x [1438, 1, 8, 8] float32 in [-1, 1], y [1438], on the CPU. Shared: not to be written to."""
    return _split()[0]


def held_out_digits() -> Batch:
    """x [359, 1, 8, 8] float32 in [-1, 1], y [359], on the CPU. Shared: not to be written to."""
    return _split()[1]


class DigitsSource(PositionedSource):
    """The training digits, every one once per epoch, in an order that depends on the seed and the epoch alone."""

    shape = DigitsConfig.shape
    num_classes = DigitsConfig.num_classes

    def __init__(
        self, config: DigitsConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        super().__init__(global_batch=config.global_batch, rank=rank, world_size=world_size)
        digits = training_digits()
        self._digits = Batch(digits.x.to(device), digits.y.to(device))
        self._order = EpochOrder(len(digits.y), seed=seed)

    def held_out(self) -> HeldOut:
        return HeldOut("held-out digits", held_out_digits())

    def at(self, positions: Positions) -> Batch:
        indices = self._order.indices(positions).to(self._digits.y.device)
        return Batch(self._digits.x[indices], self._digits.y[indices])
