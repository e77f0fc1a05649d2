from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.typed import build
from afm_scale.flow.times import (
    AnyTimes,
    GridTimes,
    IntervalSampler,
    LogitNormalIntervals,
    TimeSampler,
    UniformIntervals,
)


def draws(count: int) -> KeyedDraws:
    return KeyedDraws(0, 3, "generator", positions=Positions(0, 1, count))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7])
def test_grid_times_are_the_fractions_of_k_correctly_rounded(steps: int) -> None:
    s, t = GridTimes(steps=steps)(draws(500))
    grid = torch.tensor([float(Fraction(k, steps)) for k in range(steps + 1)], dtype=torch.float64).float()
    upper = torch.bucketize(s, grid)  # index of s in the grid
    assert torch.equal(s, grid[upper])
    assert torch.equal(t, grid[upper - 1])
    assert upper.unique().tolist() == list(range(1, steps + 1))
    assert (t[s == grid[1]] == 0).all()  # exactly: not 1e-8
    assert (s[t == grid[-2]] == 1).all()


def test_every_step_of_a_grid_is_equally_likely() -> None:
    _, t = GridTimes(steps=4)(draws(4000))
    counts = torch.stack([(t == k / 4).sum() for k in range(4)]).double()
    assert ((counts - 1000).abs() < 4 * (4000 * 0.25 * 0.75) ** 0.5).all()


def test_any_times_are_ordered_and_inside_the_unit_interval() -> None:
    s, t = AnyTimes()(draws(4000))
    assert (t >= 0).all() and (t <= s).all() and (s <= 1).all()


def test_any_times_are_uniform_below_one_and_uniform_below_the_source() -> None:
    s, t = AnyTimes()(draws(4000))
    for values in (s, t / s):
        deciles = torch.histc(values, bins=10, min=0, max=1)
        assert ((deciles - 400).square() / 400).sum() < 27.9  # chi squared, 9 degrees of freedom, 0.1%
    correlation = torch.corrcoef(torch.stack((s, t / s)))[0, 1]
    assert abs(correlation) < 4 / 4000**0.5


@pytest.mark.parametrize("sampler", [GridTimes(steps=7), AnyTimes(), LogitNormalIntervals(), UniformIntervals()])
def test_the_times_of_a_sample_do_not_depend_on_how_many_are_drawn_with_it(
    sampler: TimeSampler | IntervalSampler,
) -> None:
    """To the bit, for all sizes of the registers that they are computed in."""
    def drawn(positions: Positions) -> torch.Tensor:
        return torch.stack(sampler(KeyedDraws("times", positions=positions)), dim=1)

    together = drawn(Positions(0, 1, 96))
    for ranks in (2, 3, 8, 32, 96):
        for rank in range(ranks):
            alone = drawn(Positions(rank, ranks, 96 // ranks))
            assert torch.equal(alone, together[rank::ranks])


def test_times_are_float32() -> None:
    for sampler in (GridTimes(steps=3), AnyTimes()):
        assert {time.dtype for time in sampler(draws(4))} == {torch.float32}


def test_a_grid_without_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps: found 0, wanted a whole number from 1"):
        build(GridTimes, {"steps": 0})
