"""What is kept of generated samples, over all ranks, to be compared with a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import DivergenceError
from ..core.place import Place
from ..sampling.order import npz_order
from .features.extractor import Features
from .running import Gaussian, RunningGaussian, RunningInceptionScore

SPLIT_SIZE = 5_000  # of the inception score, in ADM's evaluator


@dataclass(frozen=True)
class _Sizes:
    pool: int
    spatial: int | None
    logits: int | None


class SampleSummary:
    """Statistics of the features of samples 0 ... num_samples - 1, which the ranks add in any order and then gather.

    Args:
        num_samples: over all ranks.
        num_members: how many samples are also kept one by one, for precision and recall: those that come first in
            the npz, a fair choice even where the numbers go class by class. ADM's evaluator takes all samples. Each
            rank has room for all members, 4 bytes a number.
        device: where sums are made; features from elsewhere are copied there.
    """

    def __init__(self, num_samples: int, num_members: int, device: torch.device | str) -> None:
        assert num_samples > 0 and num_members >= 0, (num_samples, num_members)
        self.num_samples = num_samples
        self._num_members = min(num_members, num_samples)
        self._device = torch.device(device)
        self._place = torch.argsort(npz_order(num_samples))  # [num_samples], on the CPU
        self._is_member = self._place < num_members
        self._member_row = self._is_member.cumsum(dim=0) - 1  # of those that are
        self._times_seen = torch.zeros(num_samples, dtype=torch.int32)  # on the CPU
        self._first_broken = num_samples
        self._sizes: _Sizes | None = None  # until the first features come
        self._gathered = False

    def add(self, features: Features, indices: Tensor) -> None:
        """Takes the features of the samples numbered `indices` [B] int64. Each sample is added once, on one rank."""
        assert not self._gathered, "a gathered summary takes no more samples"
        indices = indices.cpu()
        self._times_seen.index_add_(0, indices, torch.ones_like(indices, dtype=torch.int32))
        parts = [part for part in (features.pool, features.spatial, features.logits) if part is not None]
        finite = torch.stack([part.isfinite().all(dim=1) for part in parts]).all(dim=0).cpu()
        if not finite.all():
            # Told by `gather`, on all ranks: an error on one alone would leave the others waiting.
            self._first_broken = min(self._first_broken, int(indices[~finite].min()))
            return
        self._make_room(_Sizes(*(
            None if part is None else part.shape[1] for part in (features.pool, features.spatial, features.logits)
        )))
        place, is_member = self._place[indices], self._is_member[indices]
        pool = features.pool.to(self._device)
        for number, half in enumerate(self._halves):
            half.add(pool[(place % 2 == number).to(self._device)])
        rows = self._member_row[indices[is_member]]
        self._members[rows.to(self._device)] = pool[is_member.to(self._device)].to(torch.float32)
        if self._spatial is not None and features.spatial is not None:
            self._spatial.add(features.spatial)
        if self._scores is not None and features.logits is not None:
            self._scores.add(features.logits, place // SPLIT_SIZE)

    def gather(self, place: Place) -> None:
        """Collective. Afterwards, every rank has what all have added, and the properties below.

        Raises DivergenceError, on all ranks, if a feature was not a finite number; names the first such sample.
        """
        if place.world_size > 1:
            told: list[tuple[int, _Sizes | None]] = [(0, None)] * place.world_size
            dist.all_gather_object(told, (self._first_broken, self._sizes))
            self._first_broken = min(first_broken for first_broken, _ in told)
        if self._first_broken < self.num_samples:
            raise DivergenceError(
                f"sample {self._first_broken} has features that are not finite numbers: the sample itself is not "
                "finite (the training had diverged), or the extractor overflowed on it"
            )
        if place.world_size > 1:
            self._times_seen = _sum_(self._times_seen.to(self._device)).cpu()
        assert (self._times_seen == 1).all(), (
            f"{int((self._times_seen == 0).sum())} of {self.num_samples} samples were not added, "
            f"{int((self._times_seen > 1).sum())} more than once"
        )
        if place.world_size > 1:
            for _, sizes in told:
                if sizes is not None:
                    self._make_room(sizes)  # where this rank was given no samples
            for running in (*self._halves, self._spatial, self._scores):
                if running is not None:
                    running.all_reduce(_sum_)
            _sum_(self._members)  # a row is zero on all ranks but one, so the sum is exact
        self._gathered = True

    @property
    def pool(self) -> Gaussian:
        """Raises DataError if there are fewer than two samples."""
        self._check_gathered()
        whole = RunningGaussian(self._members.shape[1], self._device)
        for half in self._halves:
            whole.merge(half)
        return whole.finish()

    @property
    def halves(self) -> tuple[Gaussian, Gaussian]:
        """`pool` of every other sample of the npz, and of the rest. Raises DataError for fewer than four samples."""
        self._check_gathered()
        first, second = self._halves
        return first.finish(), second.finish()

    @property
    def spatial(self) -> Gaussian | None:
        self._check_gathered()
        return None if self._spatial is None else self._spatial.finish()

    @property
    def members(self) -> Tensor:
        """[min(num_members, num_samples), D] float32 on the device: pool features, in the order of the numbers."""
        self._check_gathered()
        return self._members

    @property
    def inception_score(self) -> tuple[float, float] | None:
        """Mean and standard deviation over the splits of 5,000 of the npz, the last of which may be smaller."""
        self._check_gathered()
        return None if self._scores is None else self._scores.finish()

    @property
    def inception_score_shortfall(self) -> float | None:
        """About how far the logarithm of the inception score lies below that of endless splits."""
        self._check_gathered()
        return None if self._scores is None else self._scores.shortfall()

    def _check_gathered(self) -> None:
        assert self._gathered, "the summary is of this rank's samples alone until `gather`"

    def _make_room(self, sizes: _Sizes) -> None:
        if self._sizes is not None:
            assert sizes == self._sizes, f"features of {sizes} after such of {self._sizes}"
            return
        self._sizes = sizes
        num_splits = -(-self.num_samples // SPLIT_SIZE)
        self._halves = [RunningGaussian(sizes.pool, self._device) for _ in range(2)]
        self._members = torch.zeros(self._num_members, sizes.pool, dtype=torch.float32, device=self._device)
        self._spatial = None if sizes.spatial is None else RunningGaussian(sizes.spatial, self._device)
        self._scores = (
            None if sizes.logits is None else RunningInceptionScore(num_splits, sizes.logits, self._device)
        )


def _sum_(value: Tensor) -> Tensor:
    dist.all_reduce(value)
    return value
