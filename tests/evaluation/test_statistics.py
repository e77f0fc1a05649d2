from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from afm_scale.evaluation.statistics import (
    frechet_distance,
    gaussian_statistics,
    mean_pairwise_distance,
    precision_recall,
    wasserstein1,
)


def orthogonal(size: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def test_the_distance_of_gaussians_with_common_axes_is_the_sum_over_the_axes() -> None:
    rng, axes = np.random.default_rng(0), orthogonal(20)
    spread1, spread2, shift = rng.uniform(0.1, 3, 20), rng.uniform(0.1, 3, 20), rng.standard_normal(20)
    expected = (shift**2).sum() + ((spread1 - spread2) ** 2).sum()
    covariances = [axes * spread**2 @ axes.T for spread in (spread1, spread2)]
    found = frechet_distance(shift, covariances[0], np.zeros(20), covariances[1])
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_general_gaussians_is_the_cost_of_the_linear_map_between_them() -> None:
    # x -> A x with A symmetric positive definite is an optimal map, so its cost tr((A - 1) C (A - 1)) is the distance.
    rng = np.random.default_rng(1)
    factor, root = rng.standard_normal((12, 12)), rng.standard_normal((12, 12))
    cov, linear = factor @ factor.T, root @ root.T + np.eye(12)
    expected = np.trace((linear - np.eye(12)) @ cov @ (linear - np.eye(12)))
    found = frechet_distance(np.zeros(12), cov, np.zeros(12), linear @ cov @ linear)
    assert found == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_keep_all_their_digits() -> None:
    axes = orthogonal(30, seed=2)
    spread1, spread2 = np.zeros(30), np.zeros(30)
    spread1[:10], spread2[5:15] = np.linspace(1, 2, 10), np.linspace(3, 1, 10)
    covariances = [axes * spread**2 @ axes.T for spread in (spread1, spread2)]
    zero = np.zeros(30)
    found = frechet_distance(zero, covariances[0], zero, covariances[1])
    assert found == pytest.approx(((spread1 - spread2) ** 2).sum(), abs=1e-9)
    assert frechet_distance(zero, covariances[0], zero, covariances[0]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(zero, 0 * axes, zero, covariances[0]) == pytest.approx((spread1**2).sum(), abs=1e-9)


def test_gaussian_statistics_are_the_mean_and_the_unbiased_covariance() -> None:
    features = np.random.default_rng(3).standard_normal((40, 5)).astype(np.float32)
    mean, cov = gaussian_statistics(features)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), atol=1e-15)
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64), rowvar=False), atol=1e-14)
    assert cov.dtype == np.float64


@pytest.mark.parametrize(("features", "message"), [(np.zeros((1, 3)), "at least 2 samples"), (np.zeros(3), r"\(3,\)")])
def test_features_without_a_covariance_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian_statistics(features)


def share_in_manifold(points: np.ndarray, members: np.ndarray, k: int) -> float:
    """By the definition, one pair at a time."""
    inside = []
    for point in points:
        hits = []
        for i, member in enumerate(members):
            others = sorted(np.linalg.norm(member - other) for j, other in enumerate(members) if j != i)
            hits.append(np.linalg.norm(point - member) <= others[k - 1])
        inside.append(any(hits))
    return float(np.mean(inside))


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_precision_and_recall_follow_the_definition_whatever_the_block(block: int) -> None:
    rng = np.random.default_rng(4)
    real, fake = rng.standard_normal((30, 3)), 0.6 * rng.standard_normal((41, 3)) + 0.4
    precision, recall = precision_recall(real, fake, k=3, block=block)
    assert precision == share_in_manifold(fake, real, 3)
    assert recall == share_in_manifold(real, fake, 3)
    assert 0.1 < recall < precision < 1  # a case that can tell the two apart


def test_samples_of_one_mode_have_precision_and_no_recall() -> None:
    rng = np.random.default_rng(5)
    near, far = rng.standard_normal((200, 2)), rng.standard_normal((600, 2)) + 100
    precision, recall = precision_recall(np.concatenate((near, far)), rng.standard_normal((300, 2)))
    assert precision > 0.9 and recall <= 0.25


def test_too_few_samples_for_the_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="found 10 real, 3 fake"):
        precision_recall(np.zeros((10, 2)), np.zeros((3, 2)), k=3)


def test_the_mean_pairwise_distance_is_over_different_rows() -> None:
    corners = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert mean_pairwise_distance(corners) == pytest.approx(4.0, abs=1e-12)


def test_wasserstein1_is_the_area_between_the_quantile_functions() -> None:
    quantiles = np.linspace(-1, 1, 101)
    shuffled = np.random.default_rng(6).permutation(quantiles)
    assert wasserstein1(shuffled, quantiles) == 0
    assert wasserstein1(shuffled + 0.3, quantiles) == pytest.approx(0.3)
    assert wasserstein1(2 * shuffled, quantiles) == pytest.approx(np.abs(quantiles).mean())
    with pytest.raises(ValueError, match="as many"):
        wasserstein1(quantiles[:5], quantiles)


def scipy_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """As pytorch-fid and ADM's evaluator compute it."""
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


@pytest.mark.parametrize("num_samples", [40, 64, 1000])
def test_the_distance_agrees_with_the_square_root_of_scipy(num_samples: int) -> None:
    rng = np.random.default_rng(7)
    mix = rng.standard_normal((60, 60))
    ours = gaussian_statistics(rng.standard_normal((num_samples, 60)))
    theirs = gaussian_statistics(rng.standard_normal((2000, 60)) @ mix + 1)
    # With 40 samples the covariance is singular, and scipy's root of the product is off by the root of the rounding.
    rtol = 1e-6 if num_samples == 40 else 1e-10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy: the matrix is singular
        expected = scipy_distance(*ours, *theirs)
    assert frechet_distance(*ours, *theirs) == pytest.approx(expected, rel=rtol)


def test_a_covariance_of_too_few_samples_is_at_the_distance_of_its_own_subspace() -> None:
    # Of N samples, the nonzero part C = F F^T lives in N - 1 dimensions; to the identity the distance is the sum of
    # (sqrt(l) - 1)^2 over them, and 1 for each of the others.
    samples = np.random.default_rng(8).standard_normal((20, 100))
    mean, cov = gaussian_statistics(samples)
    centred = samples - samples.mean(axis=0)
    spread = np.sort(np.linalg.svd(centred / np.sqrt(19), compute_uv=False))[1:]
    expected = (mean**2).sum() + ((spread - 1) ** 2).sum() + 81
    assert frechet_distance(mean, cov, np.zeros(100), np.eye(100)) == pytest.approx(expected, rel=1e-12)


def test_members_that_occur_more_than_k_times_hold_their_copies_only() -> None:
    rng = np.random.default_rng(9)
    one = rng.standard_normal((1, 40)) + 1000
    real, fake = np.repeat(one, 6, axis=0), np.concatenate((np.repeat(one, 5, axis=0), one + 1e-3))
    # The nearest neighbours of the lonely fake are the copies, so its ball reaches them: recall is 1 either way.
    assert precision_recall(real, fake, k=3) == (5 / 6, 1.0)


def test_the_borders_of_the_balls_belong_to_the_manifold() -> None:
    grid = np.arange(10.0)[:, None]  # each has its second neighbour at 1, the two at the ends at 2
    assert precision_recall(grid, np.array([[-2.0], [-2.5], [11.0], [11.5]]), k=2)[0] == 0.5
    assert precision_recall(grid + 255, np.array([[-2.0], [-2.5], [11.0], [11.5]]) + 255, k=2)[0] == 0.5


def test_precision_and_recall_stay_the_same_far_from_the_origin_and_in_any_dtype() -> None:
    rng = np.random.default_rng(10)
    real, fake = (rng.integers(-64, 64, (200, 8)).astype(np.float32) for _ in range(2))
    expected = precision_recall(real, fake)
    assert 0.1 < expected[0] < 0.95
    assert precision_recall(real + 2**20, fake + 2**20) == expected
    assert precision_recall(torch.from_numpy(real).double() / 1024, fake.astype(np.float64) / 1024) == expected
    read_only = real.copy()
    read_only.flags.writeable = False
    assert precision_recall(read_only, fake) == expected


def test_what_is_not_a_matrix_has_no_precision() -> None:
    with pytest.raises(ValueError, match=r"\[N, D\], found shape \(10,\)"):
        precision_recall(np.zeros(10), np.zeros((10, 2)))
