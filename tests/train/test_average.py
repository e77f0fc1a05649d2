"""The average of the generator's weights, against its closed form."""

from __future__ import annotations

import math

import pytest
import torch

from afm_scale.core.types import Role
from afm_scale.train.average import Average, AverageConfig
from tests.ranks import run_ranks
from tests.train.hooks.small import small_plan, small_state

DECAYS = (AverageConfig(decay=0.5), AverageConfig(decay=0.9, warm_up=True), AverageConfig(decay=0.0))


def averaged(config: AverageConfig, num_updates: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The average of one tensor after some updates, and what the tensor was: at the start and before each update."""
    plan = small_plan()
    state = small_state(plan)
    average, player = Average(state.average.network, config, plan), state.players[Role.GENERATOR]
    history = [plan.local_tensors(player.module)["mix.weight"].clone()]
    for step in range(num_updates):
        for name, weights in plan.local_tensors(player.module).items():
            weights.add_(torch.full_like(weights, step + len(name)))
        history.append(plan.local_tensors(player.module)["mix.weight"].clone())
        average.update(player, step)
    return plan.local_tensors(state.average.network)["mix.weight"].clone(), history


def closed_form(config: AverageConfig, history: list[torch.Tensor]) -> torch.Tensor:
    """sum_k (1 - d_k) prod_{j > k} d_j w_k, and what is left of the start."""
    decays = [config.decay_at(step) for step in range(len(history) - 1)]
    terms = [(1 - decays[k]) * math.prod(decays[k + 1 :]) * history[k + 1].double() for k in range(len(decays))]
    return sum(terms) + math.prod(decays) * history[0].double()


@pytest.mark.parametrize("config", DECAYS, ids=str)
def test_the_average_is_the_weighted_sum_of_all_weights(config):
    found, history = averaged(config, num_updates=7)
    torch.testing.assert_close(found.double(), closed_form(config, history), rtol=1e-6, atol=1e-6)


def test_a_sharded_average_is_the_same_on_every_shard():
    for found, history in run_ranks(2, averaged, DECAYS[1], 5):
        assert found.shape == (8, 17)
        torch.testing.assert_close(found.double(), closed_form(DECAYS[1], history), rtol=1e-6, atol=1e-6)


def test_a_decay_of_zero_copies_the_weights():
    found, history = averaged(AverageConfig(decay=0.0), num_updates=2)
    assert torch.equal(found, history[-1])


def test_warming_up_begins_with_a_tenth_and_ends_at_the_decay():
    config = AverageConfig(decay=0.99, warm_up=True)
    assert config.decay_at(0) == 0.1
    assert config.decay_at(90) == 0.91
    assert [config.decay_at(step) for step in (889, 890, 891, 10_000)] == pytest.approx([890 / 899, 0.99, 0.99, 0.99])
    assert AverageConfig(decay=0.99).decay_at(0) == 0.99
