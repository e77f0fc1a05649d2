from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from afm_scale.core.errors import DataError
from afm_scale.evaluation.running import RunningGaussian, RunningInceptionScore


def correlated(count: int, dim: int, seed: int = 0) -> Tensor:
    """Features [count, dim] float64 whose means are up to thirty times their spread."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=rng, dtype=torch.float64)
    return torch.randn(count, dim, generator=rng, dtype=torch.float64) @ mix + 100 * torch.rand(
        dim, generator=rng, dtype=torch.float64
    )


def running(batches: list[Tensor], dim: int) -> RunningGaussian:
    statistics = RunningGaussian(dim, "cpu")
    for batch in batches:
        statistics.add(batch)
    return statistics


def assert_same(found: RunningGaussian, features: Tensor, rtol: float) -> None:
    gaussian = found.finish()
    assert gaussian.count == len(features)
    covariance = np.cov(features.numpy(), rowvar=False)
    np.testing.assert_allclose(gaussian.mean, features.mean(dim=0).numpy(), rtol=rtol)
    np.testing.assert_allclose(gaussian.covariance, covariance, rtol=rtol, atol=rtol * np.abs(covariance).max())
    np.testing.assert_array_equal(gaussian.covariance, gaussian.covariance.T)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 500])
def test_the_statistics_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    features = correlated(500, 12)
    assert_same(running(list(features.split(batch_size)), 12), features, rtol=1e-12)


def test_a_mean_a_million_times_the_spread_leaves_nine_digits_of_the_covariance() -> None:
    # The naive sum of squares would leave four: it loses the square of that factor.
    features = torch.randn(400, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shifted = features + 2**20  # in float64 this keeps 32 bits of what is behind the point
    assert_same(running(list(shifted.split(9)), 3), shifted, rtol=1e-9)


def test_float32_features_are_summed_in_float64() -> None:
    features = correlated(300, 5).float()
    found = running(list(features.split(10)), 5)
    assert_same(found, features.double(), rtol=1e-12)
    assert found.finish().covariance.dtype == np.float64


def test_merged_statistics_are_those_of_both_and_nothing_changes_by_nothing() -> None:
    features = correlated(90, 6)
    whole, empty = running([features[:0], features[:70]], 6), running([], 6)
    whole.merge(empty)
    empty.merge(running([features[70:]], 6))
    whole.merge(empty)
    assert_same(whole, features, rtol=1e-12)


def test_fewer_than_two_features_have_no_covariance() -> None:
    with pytest.raises(DataError, match="at least 2 samples, found 1"):
        running([torch.ones(1, 3)], 3).finish()


class Threads:
    """Ranks that are threads of this process."""

    def __init__(self, world_size: int) -> None:
        self._values: list[Tensor] = []
        self._barrier = threading.Barrier(world_size, timeout=30)

    def sum(self, value: Tensor) -> Tensor:
        self._values.append(value)
        self._barrier.wait()
        total = torch.stack(self._values).sum(dim=0)
        if self._barrier.wait() == 0:
            self._values.clear()
        self._barrier.wait()
        return value.copy_(total)


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_with_unequal_parts_or_none_come_to_the_statistics_of_the_whole(world_size: int) -> None:
    features = correlated(200, 10)
    bounds = [len(features) * rank**2 // (world_size - 1) ** 2 for rank in range(world_size)] + [len(features)]
    parts = [running([features[low:high]], 10) for low, high in zip(bounds, bounds[1:], strict=False)]
    threads = Threads(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        list(pool.map(lambda part: part.all_reduce(threads.sum), parts))
    for part in parts:
        assert_same(part, features, rtol=1e-12)


def inception_score(logits: Tensor, num_splits: int = 1, batch_size: int = 64) -> RunningInceptionScore:
    scores = RunningInceptionScore(num_splits, logits.shape[1], "cpu")
    splits = torch.arange(len(logits)) * num_splits // len(logits)
    for batch, split in zip(logits.split(batch_size), splits.split(batch_size), strict=True):
        scores.add(batch, split)
    return scores


def test_certain_images_of_all_classes_score_their_number_and_unsure_or_equal_ones_score_one() -> None:
    certain = 1e4 * torch.eye(8).repeat(5, 1)  # p is exactly 0 or 1
    assert inception_score(certain).finish() == (pytest.approx(8, rel=1e-12), 0)
    assert inception_score(torch.zeros(40, 8)).finish() == (pytest.approx(1, rel=1e-12), 0)
    assert inception_score(certain[:1].repeat(40, 1)).finish() == (pytest.approx(1, rel=1e-12), 0)


@pytest.mark.parametrize("batch_size", [1, 17, 1000])
def test_the_inception_score_follows_the_definition_split_by_split(batch_size: int) -> None:
    logits = 2 * torch.randn(300, 9, generator=torch.Generator().manual_seed(2))
    expected = []
    for part in logits.double().softmax(dim=1).numpy().reshape(3, 100, 9):  # as ADM's evaluator writes it
        divergences = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        expected.append(np.exp(divergences.sum(axis=1).mean()))
    mean, std = inception_score(logits, num_splits=3, batch_size=batch_size).finish()
    assert (mean, std) == (pytest.approx(np.mean(expected), rel=1e-12), pytest.approx(np.std(expected), rel=1e-9))


def test_the_shortfall_is_what_a_small_split_lacks_of_the_score_of_a_large_one() -> None:
    logits = 3 * torch.randn(20_000, 20, generator=torch.Generator().manual_seed(3))
    endless = np.log(inception_score(logits, batch_size=10_000).finish()[0])
    small = inception_score(logits, num_splits=200, batch_size=10_000)  # 100 images each
    lacking = endless - np.log(small.finish()[0])
    assert 0.02 < lacking < 0.1
    assert small.shortfall() == pytest.approx(lacking, rel=0.1)
