from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from afm_scale.core.errors import DataError, DivergenceError
from afm_scale.evaluation import summary as summary_module
from afm_scale.evaluation.features.extractor import Features
from afm_scale.evaluation.figures import Figures, compare
from afm_scale.evaluation.reference import Reference
from afm_scale.evaluation.running import Gaussian
from afm_scale.evaluation.statistics import frechet_distance, gaussian_statistics, precision_recall
from afm_scale.evaluation.summary import SampleSummary
from afm_scale.sampling.order import npz_order
from tests.ranks import run_ranks


@dataclass(frozen=True)
class Group:
    rank: int = 0
    world_size: int = 1


def features_of(count: int, *, dim: int = 6, seed: int = 0) -> Features:
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=rng)
    return Features(
        pool=torch.randn(count, dim, generator=rng) @ mix + 3,
        spatial=torch.rand(count, 4, generator=rng),
        logits=2 * torch.randn(count, 7, generator=rng),
    )


def at(features: Features, rows: Tensor) -> Features:
    parts = (features.pool, features.spatial, features.logits)
    return Features(*(None if part is None else part[rows] for part in parts))


def summary_of(
    features: Features, *, num_members: int = 0, batch_size: int = 32, order: Tensor | None = None
) -> SampleSummary:
    count = len(features.pool)
    summary = SampleSummary(count, num_members, "cpu")
    for rows in (torch.arange(count) if order is None else order).split(batch_size):
        summary.add(at(features, rows), rows)
    summary.gather(Group())
    return summary


def reference_of(features: Features, *, num_members: int | None = None) -> Reference:
    gaussians = [
        None if part is None else Gaussian(len(part), *gaussian_statistics(part.numpy()))
        for part in (features.pool, features.spatial)
    ]
    assert gaussians[0] is not None
    return Reference("test", gaussians[0], gaussians[1], features.pool[:num_members].numpy(), {})


def assert_close(found: Gaussian | None, expected: Gaussian | None, rtol: float = 1e-9) -> None:
    assert found is not None and expected is not None and found.count == expected.count
    np.testing.assert_allclose(found.mean, expected.mean, rtol=rtol)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=rtol, atol=1e-12)


def score_of_npz(logits: Tensor, split_size: int) -> tuple[float, float]:
    """As ADM's evaluator does for the npz that we would write."""
    p, scores = logits[npz_order(len(logits))].double().softmax(dim=1).numpy(), []
    for start in range(0, len(p), split_size):
        part = p[start:start + split_size]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


@pytest.mark.parametrize("batch_size", [1, 13, 400])
def test_neither_the_batch_size_nor_the_order_of_arrival_matters(batch_size: int) -> None:
    features = features_of(103)
    order = torch.randperm(103, generator=torch.Generator().manual_seed(1))
    summary = summary_of(features, num_members=20, batch_size=batch_size, order=order)
    expected = reference_of(features)
    assert_close(summary.pool, expected.pool)
    assert_close(summary.spatial, expected.spatial)
    assert torch.equal(summary.members, features.pool[npz_order(103)[:20].sort().values])
    assert summary.inception_score == pytest.approx(score_of_npz(features.logits, 5000), rel=1e-12)


def test_the_splits_of_the_inception_score_are_those_of_the_shuffled_npz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "SPLIT_SIZE", 30)
    features = features_of(100)  # three splits of 30 and one of 10
    assert summary_of(features).inception_score == pytest.approx(score_of_npz(features.logits, 30), rel=1e-12)


def test_the_published_split_size_gives_two_splits_for_six_thousand_images() -> None:
    features = features_of(6000, dim=2)
    found = summary_of(features, batch_size=1000).inception_score
    assert found == pytest.approx(score_of_npz(features.logits, 5000), rel=1e-12)
    assert found is not None and found[1] > 0


def spread_over_ranks(features: Features, tile: int) -> dict[str, Any]:
    """Tiles in turn, as samples are drawn; then what happens when one rank has a broken sample."""
    ranks = Group(dist.get_rank(), dist.get_world_size())
    mine = [rows for number, rows in enumerate(torch.arange(len(features.pool)).split(tile))
            if number % ranks.world_size == ranks.rank]
    summary, broken = (SampleSummary(len(features.pool), 50, "cpu") for _ in range(2))
    for rows in mine:
        summary.add(at(features, rows), rows)
        pool = features.pool[rows].clone()
        pool[rows == 41] = torch.nan
        broken.add(replace(at(features, rows), pool=pool), rows)
    summary.gather(ranks)
    with pytest.raises(DivergenceError, match="sample 41 has"):
        broken.gather(ranks)
    return {
        "pool": summary.pool, "spatial": summary.spatial, "members": summary.members.numpy(),
        "score": summary.inception_score, "halves": summary.halves, "num_mine": sum(len(rows) for rows in mine),
    }


@pytest.mark.parametrize(("world_size", "tile"), [(2, 16), (4, 32)])  # of four ranks, the last has nothing
def test_every_rank_gathers_the_summary_of_one_and_the_same_error(world_size: int, tile: int) -> None:
    features = features_of(90)
    alone = summary_of(features, num_members=50)
    results = run_ranks(world_size, spread_over_ranks, features, tile, timeout=240)
    if tile == 32:
        assert results[3]["num_mine"] == 0
    for result in results:
        assert_close(result["pool"], alone.pool)
        assert_close(result["spatial"], alone.spatial)
        for half, expected in zip(result["halves"], alone.halves, strict=True):
            assert_close(half, expected)
        np.testing.assert_array_equal(result["members"], alone.members.numpy())
        assert result["score"] == pytest.approx(alone.inception_score, rel=1e-12)
        np.testing.assert_array_equal(result["pool"].covariance, results[0]["pool"].covariance)


def test_members_are_a_fair_choice_where_the_numbers_go_class_by_class() -> None:
    classes = torch.arange(1000) // 100
    chosen = summary_of(Features(classes[:, None].float()), num_members=200).members.flatten()
    assert torch.equal(chosen, chosen.sort().values)  # in the order of numbers
    assert chosen.long().bincount(minlength=10).min() >= 8  # 20, standard deviation 4
    features = features_of(30)
    for num_members in (30, 99):  # as many as there are
        assert torch.equal(summary_of(features, num_members=num_members).members, features.pool)


@pytest.mark.parametrize("part", ["pool", "spatial", "logits"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_sample_whose_features_are_not_finite_is_named(part: str, value: float) -> None:
    features = features_of(60)
    getattr(features, part)[[57, 31], 1] = value
    with pytest.raises(DivergenceError, match="sample 31 has features that are not finite"):
        summary_of(features, batch_size=7, order=torch.arange(60).flip(0))


def test_a_summary_with_samples_missing_or_added_twice_is_a_mistake_of_ours() -> None:
    summary, features = SampleSummary(10, 0, "cpu"), features_of(10)
    summary.add(at(features, torch.arange(6)), torch.arange(6))
    summary.add(at(features, torch.arange(5, 9)), torch.arange(5, 9))
    with pytest.raises(AssertionError, match="1 of 10 samples were not added, 1 more than once"):
        summary.gather(Group())
    with pytest.raises(AssertionError, match="until `gather`"):
        _ = summary.pool


def test_the_figures_are_the_measures_of_the_two_sets() -> None:
    ours, theirs = features_of(300), features_of(400, seed=1)
    figures = compare(summary_of(ours, num_members=200), reference_of(theirs, num_members=150), device="cpu")
    pools = [gaussian_statistics(features.pool.numpy()) for features in (ours, theirs)]
    members = ours.pool[npz_order(300)[:200]]
    spatials = [gaussian_statistics(features.spatial.numpy()) for features in (ours, theirs)]
    assert figures.frechet_distance == pytest.approx(frechet_distance(*pools[0], *pools[1]), rel=1e-9)
    assert figures.spatial_frechet_distance == pytest.approx(frechet_distance(*spatials[0], *spatials[1]), rel=1e-9)
    assert (figures.precision, figures.recall) == precision_recall(theirs.pool[:150], members, k=3)
    assert figures.inception_score == pytest.approx(score_of_npz(ours.logits, 5000)[0], rel=1e-12)
    assert figures.inception_score_std is None  # of one split
    assert (figures.num_samples, figures.num_reference) == (300, 400)


def test_gaussians_of_known_mean_and_covariance_are_at_their_known_distance() -> None:
    # Features whose sample mean and covariance are exact: +-sqrt(d) e_i is centred, with covariance (2 d / (2 d - 1)).
    corners = torch.cat((torch.eye(5), -torch.eye(5))) * 5**0.5
    scale, shift = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0]), torch.tensor([1.0, 0.0, 0.0, -2.0, 0.0])
    summary = summary_of(Features(corners.double() * scale + shift))
    reference = Reference(None, Gaussian(None, np.zeros(5), np.eye(5)), None, None, {})
    spread = (10 / 9) ** 0.5 * scale.double().numpy()
    expected = 5 + ((spread - 1) ** 2).sum()
    figures = compare(summary, reference, device="cpu")
    assert figures.frechet_distance == pytest.approx(expected, rel=1e-6)


def test_a_figure_is_left_out_where_features_or_reference_lack_what_it_needs() -> None:
    ours, theirs = features_of(50), features_of(50, seed=1)
    full, bare = reference_of(theirs), replace(reference_of(theirs), spatial=None, members=None)
    pool_only = Features(ours.pool)
    for figures in (
        compare(summary_of(pool_only), full, device="cpu"),
        compare(summary_of(pool_only, num_members=50), bare, device="cpu"),
    ):
        assert figures == Figures(
            frechet_distance=figures.frechet_distance, spatial_frechet_distance=None, inception_score=None,
            inception_score_std=None, precision=None, recall=None, num_samples=50, num_reference=50,
            notes=figures.notes,
        )
    assert compare(summary_of(ours), bare, device="cpu").spatial_frechet_distance is None
    assert summary_of(pool_only).members.shape == (0, 6)


def test_a_reference_of_other_features_or_too_few_samples_is_refused() -> None:
    with pytest.raises(DataError, match="the reference has 8 features for an image, the samples have 6"):
        compare(summary_of(features_of(20)), reference_of(features_of(20, dim=8)), device="cpu")
    with pytest.raises(DataError, match="at least 4 samples on either side, found 3 samples and 20 of the reference"):
        compare(summary_of(features_of(20), num_members=3), reference_of(features_of(20)), device="cpu")
    with pytest.raises(DataError, match="at least 2 samples, found 1"):
        compare(summary_of(features_of(1)), reference_of(features_of(20)), device="cpu")


def bias_told_by(notes: tuple[str, ...]) -> float:
    (note,) = [note for note in notes if note.startswith("of the Frechet distance, about ")]
    return float(note.split()[5])


@pytest.mark.parametrize(("num_samples", "allowed"), [(20, 0.4), (80, 0.2), (400, 0.2)])
def test_the_bias_of_few_samples_is_told(num_samples: int, allowed: float) -> None:
    # Of the same distribution the true distance is 0, so all that is found is bias.
    dim, rng = 24, torch.Generator().manual_seed(5)
    mix = torch.randn(dim, dim, generator=rng, dtype=torch.float64)
    mean = torch.exp(torch.arange(dim) / 8.0).double()
    reference = Reference(None, Gaussian(None, mean.numpy(), (mix.T @ mix).numpy()), None, None, {})
    found, told = [], []
    for _ in range(20):
        pool = torch.randn(num_samples, dim, generator=rng, dtype=torch.float64) @ mix + mean
        figures = compare(summary_of(Features(pool)), reference, device="cpu")
        found.append(figures.frechet_distance)
        told.append(bias_told_by(figures.notes))
        assert any("singular (at least 25 are needed)" in note for note in figures.notes) == (num_samples <= dim)
    assert np.mean(told) == pytest.approx(np.mean(found), rel=allowed)


def test_classes_taken_in_turn_do_not_tell_in_the_bias() -> None:
    # Two classes far apart, in turn by number: halves by even and odd numbers would have one class each.
    rng = torch.Generator().manual_seed(6)
    pool = torch.randn(400, 3, generator=rng, dtype=torch.float64) + 100 * (torch.arange(400) % 2)[:, None]
    figures = compare(summary_of(Features(pool)), reference_of(Features(pool)), device="cpu")
    assert bias_told_by(figures.notes) < 100  # with one class each it would be over 7,000


def test_what_published_figures_have_more_of_is_told() -> None:
    features = features_of(500)
    notes = compare(summary_of(features, num_members=100), reference_of(features), device="cpu").notes
    assert any("one split of 500 images" in note for note in notes)
    assert any("precision and recall are of 100 samples" in note for note in notes)


def test_fifty_thousand_samples_need_no_notes() -> None:
    features = Features(torch.randn(50_000, 2, generator=torch.Generator().manual_seed(7)))
    figures = compare(summary_of(features, batch_size=5000), reference_of(features), device="cpu")
    assert figures.notes == () and figures.frechet_distance == pytest.approx(0, abs=1e-12)
