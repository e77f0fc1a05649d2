"""What the time of plans is compared with: steps on the clock, what they are made of, and figures of the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist

from afm_scale.benchmarks.seconds import HOST_ROWS, TERMS, timed, with_host
from afm_scale.estimate.devices import Gpu
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.dry_run import hollow_config
from afm_scale.run.forecast.planning import Cluster, plan_of
from afm_scale.run.load import load
from tests.program import SMALL_AFM
from tests.ranks import run_ranks


def timings() -> dict[str, Any]:
    return timed([(SMALL_AFM[0], SMALL_AFM[1:])], dist.get_world_size(), 2, dist.get_rank())


def test_steps_are_timed_their_shares_are_whole_and_the_figures_describe_a_device() -> None:
    found = run_ranks(1, timings, timeout=500)[0]
    (row,) = found["rows"]
    assert len(row["cpu"]) == len(row["wall"]) == 2 and min(row["cpu"]) > 0
    assert sum(row["shares"][term] for term in TERMS) == pytest.approx(1) and row["shares"]["products"] > 0
    gpu = Gpu(memory=1, measured=True, **found["figures"])
    assert gpu.latency == 0  # there is nobody to send to


def test_what_the_host_takes_is_found_again_from_the_seconds_that_it_makes() -> None:
    known = Gpu(memory=1, measured=True, tflops=0.1, bandwidth=0.03, host=9.0, hook=270.0, again=90.0)
    bare = replace(known, host=0.0, hook=0.0, again=0.0)
    cluster = Cluster(ranks=2, nodes=1, gpu=known)
    configs = [hollow_config(load(RunConfig, row[0], tuple(row[1:])).resolved()) for row in HOST_ROWS.values()]
    seconds = [plan_of(config, cluster).phases[0].middle for config in configs]
    found = with_host(bare, 2, seconds)
    assert [found.host, found.hook, found.again] == pytest.approx([9.0, 270.0, 90.0])
