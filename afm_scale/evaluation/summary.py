"""What is kept of generated samples, over all ranks, and the figures that a comparison with a reference gives."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import DataError, DivergenceError
from ..core.place import Place
from ..sampling.order import npz_order
from .features.extractor import Features
from .reference import Reference
from .running import Gaussian, RunningGaussian, RunningInceptionScore
from .statistics import frechet_distance, precision_recall

SPLIT_SIZE = 5_000  # of the inception score, in ADM's evaluator
PUBLISHED_SAMPLES = 50_000  # what published figures are of


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


@dataclass(frozen=True)
class Figures:
    """How good samples are. None: the features, or the reference, do not have what the figure needs."""

    frechet_distance: float  # FID, with Inception's features
    spatial_frechet_distance: float | None  # sFID
    inception_score: float | None
    inception_score_std: float | None  # over the splits; None: there is one
    precision: float | None
    recall: float | None
    num_samples: int
    num_reference: int | None  # None: the reference does not say
    notes: tuple[str, ...]  # what a reader of the figures has to know, in sentences

    def values(self) -> dict[str, float | None]:
        """The figures themselves, by name."""
        about = ("num_samples", "num_reference", "notes")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in about}


def compare(summary: SampleSummary, reference: Reference, *, k: int = 3, device: torch.device | str) -> Figures:
    """The figures of a gathered summary. Not collective: any rank may do it alone.

    Args:
        k: of precision and recall, whose distances are computed on `device`.

    Raises DataError if the two have features of different lengths, or either has too few samples.
    """
    pool, spatial, members = summary.pool, summary.spatial, summary.members
    distance = _distance(pool, reference.pool, "features")
    spatial_distance = None
    if spatial is not None and reference.spatial is not None:
        spatial_distance = _distance(spatial, reference.spatial, "spatial features")
    precision = recall = None
    if reference.members is not None and len(members) > 0:
        if min(len(members), len(reference.members)) <= k:
            raise DataError(
                f"precision and recall with k = {k} neighbours need at least {k + 1} samples on either side, found "
                f"{len(members)} samples and {len(reference.members)} of the reference; draw more"
            )
        precision, recall = precision_recall(reference.members, members, k, device=device)
    score = summary.inception_score
    return Figures(
        frechet_distance=distance,
        spatial_frechet_distance=spatial_distance,
        inception_score=None if score is None else score[0],
        inception_score_std=None if score is None or summary.num_samples <= SPLIT_SIZE else score[1],
        precision=precision, recall=recall,
        num_samples=summary.num_samples, num_reference=reference.pool.count,
        notes=(
            *_distance_notes(summary, reference, distance), *_score_notes(summary),
            *([] if recall is None else _recall_notes(len(members))),
        ),
    )


def _distance(ours: Gaussian, theirs: Gaussian, what: str) -> float:
    if len(ours.mean) != len(theirs.mean):
        raise DataError(
            f"the reference has {len(theirs.mean)} {what} for an image, the samples have {len(ours.mean)}: it is a "
            "reference of other features; build one with the features that the samples are judged by"
        )
    return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)


def _distance_notes(summary: SampleSummary, reference: Reference, distance: float) -> list[str]:
    """Too few samples, and the bias.

    The distance of N samples is too large by b / N to leading order (Chong and Forsyth, arXiv 1911.07023), so halves
    of the samples lie b / N further away than all of them. That assumes nothing about the features, while the b of
    Gaussian ones is too small for those of a network, and much too small where N is not several times D.
    """
    num_samples, dim = summary.num_samples, len(reference.pool.mean)
    if num_samples >= PUBLISHED_SAMPLES:
        return []
    notes = []
    if num_samples <= dim:
        notes.append(
            f"{num_samples:,} samples are too few for {dim:,} features: their covariance is singular (at least "
            f"{dim + 1:,} are needed), and the Frechet distance tells mostly of that"
        )
    if num_samples < 4:
        return notes
    further = [_distance(half, reference.pool, "features") for half in summary.halves]
    bias = max(0.0, sum(further) / len(further) - distance)
    rest = bias * num_samples / PUBLISHED_SAMPLES
    notes.append(
        f"of the Frechet distance, about {bias:.3g} is there because there are only {num_samples:,} samples (from "
        f"halves of them: it falls as 1 / samples); of {PUBLISHED_SAMPLES:,}, as published figures are, about "
        f"{rest:.3g} would be"
    )
    return notes


def _score_notes(summary: SampleSummary) -> list[str]:
    shortfall = summary.inception_score_shortfall
    if shortfall is None or summary.num_samples >= SPLIT_SIZE:
        return []
    lost = -torch.expm1(torch.tensor(-shortfall * (1 - summary.num_samples / SPLIT_SIZE))).item()
    return [
        f"the inception score is of one split of {summary.num_samples:,} images, about {lost:.1%} lower than of splits "
        f"of {SPLIT_SIZE:,}, as published figures are"
    ]


def _recall_notes(num_members: int) -> list[str]:
    if num_members >= PUBLISHED_SAMPLES:
        return []
    return [
        f"precision and recall are of {num_members:,} samples; recall grows with their number, and published figures "
        f"(ADM's evaluator) take {PUBLISHED_SAMPLES:,}"
    ]
