"""Distances between sets of feature vectors, in float64 and without knowing where the features come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def gaussian_statistics(features: ArrayLike) -> tuple[Array, Array]:
    """The mean [D] and the unbiased covariance [D, D] of features [N, D]. Raises ValueError if N < 2."""
    features = _matrix(features)
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, found {len(features)}")
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), the squared 2-Wasserstein distance of two Gaussians.

    The last trace is the sum of the singular values of C1^1/2 C2^1/2. That needs no square root of a product of
    covariances, which is not symmetric and loses half of the digits where a covariance is singular.
    """
    mean1, mean2 = np.asarray(mean1, dtype=np.float64), np.asarray(mean2, dtype=np.float64)
    cov1, cov2 = np.asarray(cov1, dtype=np.float64), np.asarray(cov2, dtype=np.float64)
    overlap = np.linalg.svd(_square_root(cov1) @ _square_root(cov2), compute_uv=False).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * overlap)


def _square_root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    # Below this an eigenvalue is the rounding of a zero, and its square root would be eight digits larger.
    noise = len(values) * np.finfo(np.float64).eps * np.abs(values).max()
    values = np.where(values > noise, values, 0.0)
    return (vectors * np.sqrt(values)) @ vectors.T


def precision_recall(real: ArrayLike, fake: ArrayLike, k: int = 3, block: int = 1024) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991) of real [N, D] and fake [M, D].

    A set's manifold is the union of balls around its members that reach to their k-th nearest other member. Precision
    is the share of fakes in the real manifold, recall the share of reals in the fake one. At most [block, max(N, M)]
    distances are held at a time. Raises ValueError if a set has not more than k members.
    """
    real, fake = _matrix(real), _matrix(fake)
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k = {k} neighbours need more than {k} samples, found {len(real)} real, {len(fake)} fake")
    return _share_within(fake, real, k, block), _share_within(real, fake, k, block)


def _share_within(points: Array, members: Array, k: int, block: int) -> float:
    """The share of points in the manifold of members."""
    # Sorted, a member's distances begin with the zero to itself, so index k is the k-th other.
    radii = np.concatenate([
        np.partition(_squared_distances(members[start:start + block], members), k, axis=1)[:, k]
        for start in range(0, len(members), block)
    ])
    within = [
        (_squared_distances(points[start:start + block], members) <= radii).any(axis=1)
        for start in range(0, len(points), block)
    ]
    return float(np.concatenate(within).mean())


def _squared_distances(a: Array, b: Array) -> Array:
    """[len(a), len(b)]"""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.maximum(squares, 0.0)


def mean_pairwise_distance(features: ArrayLike) -> float:
    """The mean Euclidean distance over all pairs of different rows of features [N, D], N >= 2."""
    features = _matrix(features)
    return float(np.sqrt(_squared_distances(features, features)).sum() / (len(features) * (len(features) - 1)))


def wasserstein1(samples: ArrayLike, quantiles: ArrayLike) -> float:
    """W1 of N numbers [N] to N others [N], for instance a distribution's quantiles at (i + 1/2) / N."""
    samples = np.sort(np.asarray(samples, dtype=np.float64))
    quantiles = np.sort(np.asarray(quantiles, dtype=np.float64))
    if samples.shape != quantiles.shape:
        raise ValueError(f"W1 needs as many samples as quantiles, found {samples.shape} and {quantiles.shape}")
    return float(np.abs(samples - quantiles).mean())


def _matrix(features: ArrayLike) -> Array:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2:
        raise ValueError(f"features are a matrix [N, D], found shape {features.shape}")
    return features
