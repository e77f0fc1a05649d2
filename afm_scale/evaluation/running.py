"""Statistics of features that arrive a batch at a time, on several ranks, in float64.

What comes out depends neither on the batch size nor on the number of ranks, beyond the rounding of float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import DataError
from .statistics import Array

Sum = Callable[[Tensor], Tensor]
"""The sum of a tensor over the ranks, in place and returned; the identity on one rank."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The mean and the covariance of a set of features."""

    count: int | None  # how many features; None: the file does not say
    mean: Array  # [D]
    covariance: Array  # [D, D], unbiased


class RunningGaussian:
    """The mean and covariance of all features so far.

    Sums of squares are kept about the mean so far and corrected when it moves (Chan, Golub and LeVeque 1979), because
    the difference of two large sums would lose the digits in which a mean is larger than its spread.
    """

    def __init__(self, dim: int, device: torch.device | str) -> None:
        self._count = torch.zeros((), dtype=torch.float64, device=device)
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # sum of (x - mean) (x - mean)^T

    def add(self, x: Tensor) -> None:
        """Takes features [B, D] of any float dtype; B may be 0."""
        if len(x) == 0:
            return
        x = x.to(self._mean)
        mean = x.mean(dim=0)
        self._absorb(len(x), mean, x - mean)

    def merge(self, other: RunningGaussian) -> None:
        """Takes all that `other`, on the same device, has seen."""
        if other._count > 0:
            self._scatter += other._scatter
            self._absorb(other._count, other._mean, other._mean.new_empty(0, len(other._mean)))

    def all_reduce(self, sum_over_ranks: Sum) -> None:
        """Collective. Afterwards every rank has what all have seen."""
        total = sum_over_ranks(self._count.clone())
        mean = sum_over_ranks(self._mean * (self._count / total.clamp(min=1)))
        shift = self._mean - mean
        self._scatter.addr_(shift, self._count * shift)
        self._count, self._mean = total, mean
        sum_over_ranks(self._scatter)

    def finish(self) -> Gaussian:
        """Raises DataError if there are fewer than two features."""
        count = int(self._count)
        if count < 2:
            raise DataError(f"a covariance needs at least 2 samples, found {count}")
        covariance = (self._scatter + self._scatter.T) / (2 * (count - 1))
        return Gaussian(count, self._mean.cpu().numpy().copy(), covariance.cpu().numpy())

    def _absorb(self, count: Tensor | int, mean: Tensor, centred: Tensor) -> None:
        """Takes `count` features with this mean, whose scatter is centred^T centred beside what was added before."""
        total = self._count + count
        shift = mean - self._mean
        # The two means lie apart: what that adds to the scatter is that of one more row.
        between = shift * (self._count * count / total).sqrt()
        rows = torch.cat((centred, between[None]))
        self._scatter.addmm_(rows.T, rows)
        self._mean = self._mean + shift * (count / total)
        self._count = total


class RunningInceptionScore:
    """The inception score (Salimans et al., arXiv 1606.03498) of every split of the images.

    It is exp of the mean, over a split's images x, of KL(p(y | x) || p(y)), where p(y) is the mean of p(y | x) over
    the split: exp(H(p(y)) - mean H(p(y | x))), so that sums over the images are all it needs.
    """

    def __init__(self, num_splits: int, num_classes: int, device: torch.device | str) -> None:
        self._counts = torch.zeros(num_splits, dtype=torch.float64, device=device)
        self._negentropies = torch.zeros(num_splits, dtype=torch.float64, device=device)
        self._sums = torch.zeros(num_splits, num_classes, dtype=torch.float64, device=device)
        self._squares = torch.zeros(num_splits, num_classes, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, splits: Tensor) -> None:
        """Takes class logits [B, K] of any float dtype, and the split that each image belongs to, [B] int64."""
        log_p = logits.to(self._sums).log_softmax(dim=1)
        p = log_p.exp()
        # A matrix product, because adding by index rounds differently each time on a GPU.
        belongs = torch.nn.functional.one_hot(splits.to(p.device), len(self._counts)).to(p).T  # [num_splits, B]
        self._counts += belongs.sum(dim=1)
        self._negentropies += belongs @ (p * log_p).sum(dim=1)
        self._sums += belongs @ p
        self._squares += belongs @ p.square()

    def all_reduce(self, sum_over_ranks: Sum) -> None:
        """Collective. Afterwards every rank has what all have seen."""
        for value in (self._counts, self._negentropies, self._sums, self._squares):
            sum_over_ranks(value)

    def finish(self) -> tuple[float, float]:
        """The mean over the splits and their standard deviation, which is 0 for one split. Each has an image."""
        p = self._sums / self._counts[:, None]
        scores = (self._negentropies / self._counts - torch.special.xlogy(p, p).sum(dim=1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))

    def shortfall(self) -> float:
        """About how far the logarithm of the score lies below that of endless splits: falls as 1 / split size.

        p(y) is the mean over the split's n images itself and so too near to them, by KL(estimate || truth) on average,
        which to leading order is sum_y Var(p(y | x)) / (2 n p(y)). The mean over the splits.
        """
        p = self._sums / self._counts[:, None]
        variance = (self._squares / self._counts[:, None] - p.square()).clamp(min=0)
        excess = torch.where(p > 0, variance / p, 0).sum(dim=1)
        return float((excess / (2 * self._counts)).mean())
