"""Distances between sets of feature vectors, in float64 and without knowing where the features come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = ArrayLike | Tensor
"""Features [N, D], one vector a row, of any float dtype."""

_EPSILON = float(np.finfo(np.float64).eps)


def gaussian_statistics(features: ArrayLike) -> tuple[Array, Array]:
    """The mean [D] and the unbiased covariance [D, D] of features [N, D]. Raises ValueError if N < 2."""
    features = np.asarray(features, dtype=np.float64)
    _check_matrix(features.shape)
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, found {len(features)}")
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), the squared 2-Wasserstein distance of two Gaussians.

    The last trace is the sum of the singular values of F1^T F2 for any factors with C = F F^T. That needs no square
    root of a product of covariances, which is not symmetric and loses half of the digits where a covariance is
    singular. A factor has a column for each eigenvalue that is not zero, so covariances of few samples are quick.
    """
    mean1, mean2 = np.asarray(mean1, dtype=np.float64), np.asarray(mean2, dtype=np.float64)
    cov1, cov2 = np.asarray(cov1, dtype=np.float64), np.asarray(cov2, dtype=np.float64)
    overlap = np.linalg.svd(_factor(cov1).T @ _factor(cov2), compute_uv=False).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * overlap)


def _factor(covariance: Array) -> Array:
    """F [D, rank] with F F^T the covariance [D, D]."""
    values, vectors = np.linalg.eigh(covariance)
    # Below this an eigenvalue is the rounding of a zero, and its square root would be eight digits larger.
    kept = values > len(values) * _EPSILON * np.abs(values).max()
    return vectors[:, kept] * np.sqrt(values[kept])


def precision_recall(
    real: Rows, fake: Rows, k: int = 3, block: int = 2048, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991) of real [N, D] and fake [M, D].

    A set's manifold is the union of balls around its members that reach to their k-th nearest other member, borders
    included. Precision is the share of fakes in the real manifold, recall the share of reals in the fake one.

    The sets stay where they are; on `device` there are only two blocks [block, D] in float64 and their distances
    [block, block] at a time. Raises ValueError if a set has not more than k members.
    """
    real, fake = _rows(real), _rows(fake)
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k = {k} neighbours need more than {k} samples, found {len(real)} real, {len(fake)} fake")
    # Distances stay the same, and lose less to rounding, when the origin lies in the cloud. One of the points serves
    # better than the mean: whole numbers stay whole, so that equal distances are found equal.
    reals = _Blocks(real, origin=real[0], size=block, device=torch.device(device))
    fakes = _Blocks(fake, origin=real[0], size=block, device=torch.device(device))
    real_radii, fake_radii = _squared_radii(reals, k), _squared_radii(fakes, k)
    real_within, fake_within = (torch.zeros_like(radii, dtype=torch.bool) for radii in (real_radii, fake_radii))
    for rows, x in reals.all():
        for columns, y in fakes.all():
            squares = _squared_distances(x, y)
            fake_within[columns] |= (squares <= real_radii[rows, None]).any(dim=0)
            real_within[rows] |= (squares <= fake_radii[columns]).any(dim=1)
    return float(fake_within.double().mean()), float(real_within.double().mean())


class _Blocks:
    """Some rows [B, D] of a matrix [N, D] at a time: as float64, on a device, seen from another origin [D]."""

    def __init__(self, rows: Tensor, *, origin: Tensor, size: int, device: torch.device) -> None:
        self._rows = rows
        self._origin = origin.to(device, torch.float64)
        self._starts = range(0, len(rows), size)
        self.device = device

    def __len__(self) -> int:
        return len(self._rows)

    def all(self, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """The blocks from number `first` on, each with where it lies in the matrix."""
        for start in self._starts[first:]:
            place = slice(start, min(start + self._starts.step, len(self)))
            yield place, self._rows[place].to(self.device, torch.float64) - self._origin


def _squared_radii(blocks: _Blocks, k: int) -> Tensor:
    """[N]: how far, squared, the k-th nearest other row is from each."""
    nearest = torch.full((len(blocks), k), torch.inf, dtype=torch.float64, device=blocks.device)
    for number, (rows, x) in enumerate(blocks.all()):
        for columns, y in blocks.all(number):
            squares = _squared_distances(x, y)
            if columns == rows:
                squares.fill_diagonal_(torch.inf)  # itself
            else:
                nearest[columns] = _smallest(nearest[columns], squares.T, k)
            nearest[rows] = _smallest(nearest[rows], squares, k)
    return nearest[:, -1]


def _smallest(found: Tensor, more: Tensor, k: int) -> Tensor:
    """The k smallest of every row of [N, k] and [N, M], in order."""
    return torch.cat((found, more), dim=1).topk(k, dim=1, largest=False).values


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[len(a), len(b)]; what is below the rounding of |a|^2 + |b|^2 is zero, as for a row and its copy."""
    sizes = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    squares = torch.addmm(sizes, a, b.T, alpha=-2)
    return squares.masked_fill_(squares <= a.shape[1] * _EPSILON * sizes, 0)


def mean_pairwise_distance(features: Rows) -> float:
    """The mean Euclidean distance over all pairs of different rows of features [N, D], N >= 2."""
    rows = _rows(features).double()
    rows = rows - rows[0]
    return float(_squared_distances(rows, rows).sqrt().sum() / (len(rows) * (len(rows) - 1)))


def wasserstein1(samples: ArrayLike, quantiles: ArrayLike) -> float:
    """W1 of N numbers [N] to N others [N], for instance a distribution's quantiles at (i + 1/2) / N."""
    samples = np.sort(np.asarray(samples, dtype=np.float64))
    quantiles = np.sort(np.asarray(quantiles, dtype=np.float64))
    if samples.shape != quantiles.shape:
        raise ValueError(f"W1 needs as many samples as quantiles, found {samples.shape} and {quantiles.shape}")
    return float(np.abs(samples - quantiles).mean())


def _rows(features: Rows) -> Tensor:
    rows = features if isinstance(features, Tensor) else torch.from_numpy(np.require(features, requirements="W"))
    _check_matrix(tuple(rows.shape))
    return rows


def _check_matrix(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ValueError(f"features are a matrix [N, D], found shape {shape}")
