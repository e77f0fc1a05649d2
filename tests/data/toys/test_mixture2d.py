from __future__ import annotations

import math

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.core.typed import build
from afm_scale.data.toys.mixture2d import ClassMixture, Mixture2DConfig, Mixture2DSource

MIXTURE = ClassMixture(centres=((0.0, 0.0), (1.0, 0.2), (-0.3, 0.9)), sigma=0.3)


def source(rank: int = 0, world_size: int = 1, global_batch: int = 12, seed: int = 0) -> Mixture2DSource:
    config = Mixture2DConfig(global_batch=global_batch, distribution=MIXTURE)
    return Mixture2DSource(config, seed=seed, rank=rank, world_size=world_size, device="cpu")


def test_the_posterior_is_bayes_rule_on_the_densities_of_noised_classes() -> None:
    x = torch.tensor([[0.1, -0.4], [0.9, 0.9], [-2.0, 0.3], [0.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for point, time, found in zip(x.tolist(), t.tolist(), MIXTURE.log_posterior(x, t).exp().tolist(), strict=True):
        variance = ((1 - time) * 0.3) ** 2 + time**2
        means = [((1 - time) * a, (1 - time) * b) for a, b in MIXTURE.centres]
        densities = [math.exp(-math.dist(point, mean) ** 2 / (2 * variance)) for mean in means]
        assert found == pytest.approx([density / sum(densities) for density in densities], rel=1e-12)


def test_the_posterior_of_pure_noise_knows_nothing() -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    posterior = MIXTURE.log_posterior(x, torch.ones(5)).exp()
    torch.testing.assert_close(posterior, torch.full((5, 3), 1 / 3, dtype=torch.float64), rtol=1e-14, atol=0)


def test_the_posterior_is_calibrated_on_noised_samples_of_the_source() -> None:
    count = 60_000
    batch = next(iter(source(global_batch=count)))
    t = torch.full((count,), 0.3)
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    posterior = MIXTURE.log_posterior(0.7 * batch.x.flatten(1) + 0.3 * z, t).exp()
    right = torch.nn.functional.one_hot(batch.y, 3).double()
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (posterior >= low) & (posterior < low + 0.25)
        assert inside.sum() > 1000
        difference = (posterior[inside] - right[inside]).mean().abs().item()
        assert difference < 4 * 0.5 / inside.sum().item() ** 0.5, low


def test_samples_lie_around_the_centre_of_their_class() -> None:
    batch = next(iter(source(global_batch=30_000)))
    assert batch.x.shape == (30_000, 2, 1, 1) and batch.x.dtype == torch.float32 and batch.y.dtype == torch.int64
    for label, centre in enumerate(MIXTURE.centres):
        points = batch.x[batch.y == label].flatten(1).double()
        assert len(points) == pytest.approx(10_000, abs=4 * (30_000 * 2 / 9) ** 0.5)
        torch.testing.assert_close(points.mean(0), torch.tensor(centre, dtype=torch.float64), rtol=0, atol=0.012)
        torch.testing.assert_close(points.T.cov(), 0.09 * torch.eye(2, dtype=torch.float64), rtol=0, atol=0.006)


def test_the_stream_depends_on_seed_and_position_alone() -> None:
    one = iter(source())
    parts = [iter(source(rank, 3)) for rank in range(3)]
    for _ in range(3):
        whole = next(one)
        for rank, part in enumerate(parts):
            mine = next(part)
            assert torch.equal(mine.x, whole.x[rank::3]) and torch.equal(mine.y, whole.y[rank::3])
    resumed = source(global_batch=4)
    resumed.load_state_dict({"consumed": 32})
    assert torch.equal(next(iter(resumed)).x, whole.x[8:])
    assert not torch.equal(next(iter(source(seed=1))).x, next(iter(source())).x)


def test_there_are_as_many_classes_as_centres() -> None:
    assert Mixture2DConfig(global_batch=1).num_classes == 9
    assert source().num_classes == Mixture2DConfig(global_batch=1, distribution=MIXTURE).num_classes == 3


@pytest.mark.parametrize(("wrong", "told"), [
    ({"centres": []}, "at least one centre, found none"), ({"sigma": 0.0}, "sigma: found 0, wanted a number above 0"),
])
def test_a_mixture_without_centres_or_width_is_refused(wrong: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(ClassMixture, wrong)
