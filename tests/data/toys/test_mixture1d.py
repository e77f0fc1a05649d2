from __future__ import annotations

import math

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.core.typed import build
from afm_scale.data.toys.mixture1d import GaussianMixture, Mixture1DConfig, Mixture1DSource

PUBLISHED = GaussianMixture()


def source(rank: int = 0, world_size: int = 1, global_batch: int = 12, seed: int = 0) -> Mixture1DSource:
    config = Mixture1DConfig(global_batch=global_batch)
    return Mixture1DSource(config, seed=seed, rank=rank, world_size=world_size, device="cpu")


def test_the_quantile_function_inverts_the_cdf() -> None:
    p = torch.logspace(-30, math.log10(0.9999), 500, dtype=torch.float64)
    torch.testing.assert_close(PUBLISHED.cdf(PUBLISHED.quantile(p)), p, rtol=1e-12, atol=0)


def test_the_density_is_the_slope_of_the_cdf() -> None:
    x = torch.linspace(-1.8, 1.8, 301, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(PUBLISHED.cdf(x).sum(), x)
    torch.testing.assert_close(PUBLISHED.density(x.detach()), slope, rtol=1e-12, atol=1e-12)


def test_transport_to_one_normal_distribution_is_affine_far_into_both_tails() -> None:
    z = torch.linspace(-30, 30, 61, dtype=torch.float64)
    one = GaussianMixture(modes=(0.7,), sigma=0.3)
    torch.testing.assert_close(one.transport_map(z), 0.7 + 0.3 * z, rtol=1e-9, atol=1e-9)


def test_transport_is_odd_and_sends_quarters_of_the_noise_to_the_modes() -> None:
    z = torch.linspace(-4, 4, 200, dtype=torch.float64)  # not 0: there the cdf is flat to the last bit
    x = PUBLISHED.transport_map(z)
    assert (x.diff() > 0).all()
    torch.testing.assert_close(x, -x.flip(0), rtol=0, atol=1e-12)
    quarters = torch.bucketize(z, torch.tensor([-0.67448975, 0.0, 0.67448975], dtype=torch.float64), right=True)
    assert torch.equal(PUBLISHED.nearest_mode(x), quarters)


def test_the_optimal_cost_is_the_one_known_for_the_published_mixture() -> None:
    # E (x - z)^2 = E x^2 + 1 - 2 E x z. E x^2 is 1.25 + 0.05^2. As sigma -> 0, E x z is the sum of mode times the mean
    # of z over its quarter; a small sigma adds no more than sigma times E |z|.
    z = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    weight = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    cost = float((weight * (PUBLISHED.transport_map(z) - z) ** 2).sum())
    density = [math.exp(-(b**2) / 2) / math.sqrt(2 * math.pi) for b in (0.0, 0.6744897501960817)]
    without_width = 1.25 + 1 - 2 * 2 * (0.5 * (density[0] - density[1]) + 1.5 * density[1])
    assert without_width - 2 * 0.05 * math.sqrt(2 / math.pi) < cost < without_width + 0.05**2
    assert cost == pytest.approx(0.150, abs=1e-3)  # the exact optimum


def test_samples_have_the_distribution() -> None:
    batch = next(iter(source(global_batch=20_000)))
    assert batch.x.shape == (20_000, 1, 1, 1) and batch.x.dtype == torch.float32
    assert batch.y.dtype == torch.int64 and not batch.y.any()
    sample = batch.x.flatten().double().sort().values
    empirical = (torch.arange(20_000) + 0.5) / 20_000
    distance = (PUBLISHED.cdf(sample) - empirical).abs().max()
    assert distance < 1.95 / math.sqrt(20_000)  # Kolmogorov-Smirnov at 0.1%; the draws are fixed


def test_the_stream_depends_on_seed_and_position_alone() -> None:
    one = iter(source())
    parts = [iter(source(rank, 3)) for rank in range(3)]
    for _ in range(3):
        whole = next(one).x
        for rank, part in enumerate(parts):
            assert torch.equal(next(part).x, whole[rank::3])
    resumed = source(global_batch=4)
    resumed.load_state_dict({"consumed": 32})
    assert torch.equal(next(iter(resumed)).x, whole[8:])
    assert not torch.equal(next(iter(source(seed=1))).x, next(iter(source())).x)


@pytest.mark.parametrize(("wrong", "told"), [
    ({"modes": []}, "at least one mode, found none"), ({"sigma": 0.0}, "sigma: found 0, wanted a number above 0"),
])
def test_a_mixture_without_modes_or_width_is_refused(wrong: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(GaussianMixture, wrong)
