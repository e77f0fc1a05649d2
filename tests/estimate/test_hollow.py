"""Operations that compute nothing: their shapes, their memory, and what autograd does around them."""

from __future__ import annotations

import resource

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from afm_scale.estimate.hollow import Hollow
from afm_scale.estimate.ledger import Ledger

GIGABYTE = 2**30


def test_a_product_has_its_shape_and_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Hollow():
        left, right = torch.zeros(32_768, 8_192), torch.zeros(8_192, 16_384)
        product = left @ right
    assert product.shape == (32_768, 16_384) and product.untyped_storage().nbytes() == 2 * GIGABYTE
    # Of 3.5 GB; torch imports its meta kernels.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIGABYTE / 2


def test_a_gather_from_many_ranks_takes_no_memory() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1024)
    try:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with Hollow():
            whole, part = torch.zeros(2**28), torch.zeros(2**18)
            group = dist.distributed_c10d._get_default_group()
            group._allgather_base(whole, part).wait()
            group._reduce_scatter_base(part, whole).wait()
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIGABYTE / 8
    finally:
        dist.destroy_process_group()


def test_whole_numbers_that_were_given_are_computed_with_and_others_are_made_up() -> None:
    with Hollow():
        assert torch.tensor([3, 7]).sum().item() == 10 and torch.tensor([3, 0, 7]).nonzero().tolist() == [[0], [2]]
        assert torch.tensor(7).item() == 7
        assert torch.randn(5).mean().item() == 1.0
        assert not torch.randn(5).isnan().any()


def test_the_ledger_knows_births_and_deaths_and_views_are_none() -> None:
    ledger = Ledger()
    with Hollow(ledger):
        kept = torch.zeros(1000)
        view = kept.view(10, 100)[2:]
        gone = kept + 1
        del gone
    sizes = [(life.size, life.died is None) for life in ledger.lives]
    assert sizes == [(4000, True), (4000, False)] and view.shape == (8, 100)


def test_memory_that_is_resized_away_is_gone_and_comes_back() -> None:
    ledger = Ledger()
    with ledger.watching_resizes(), Hollow(ledger):
        storage = torch.zeros(1000).untyped_storage()
        storage.resize_(0)
        storage.resize_(4000)
    assert [(life.size, life.died is None, life.is_gathered) for life in ledger.lives] == [
        (4000, False, False), (4000, True, True),
    ]


def test_sums_of_gradients_take_the_memory_that_they_take_without_a_mode() -> None:
    def learn() -> None:
        layer = nn.Linear(64, 64)
        layer(layer(layer(layer(torch.zeros(8, 64))))).sum().backward()

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watched:
        learn()
    events = watched.profiler.kineto_results.events()
    real = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() >= 64 * 64 * 4]
    ledger = Ledger()
    with Hollow(ledger):
        learn()
    # The layer, a gradient for each of four uses, and one sum: that of the first two, the rest are added to it.
    assert len(real) == sum(life.size == 64 * 64 * 4 for life in ledger.lives) == 6
