"""What the time of plans is compared with: steps on the clock, what they are made of, and figures of the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from afm_scale.benchmarks.seconds import TERMS, timed
from afm_scale.estimate.devices import Gpu
from tests.program import SMALL_AFM
from tests.ranks import run_ranks


def timings() -> dict[str, Any]:
    return timed([(SMALL_AFM[0], SMALL_AFM[1:])], dist.get_world_size(), 2, dist.get_rank())


def test_steps_are_timed_their_shares_are_whole_and_the_figures_describe_a_device() -> None:
    found = run_ranks(1, timings, timeout=500)[0]
    (row,) = found["rows"]
    assert len(row["cpu"]) == len(row["wall"]) == 2 and min(row["cpu"]) > 0
    assert sum(row["shares"][term] for term in TERMS) == pytest.approx(1) and row["shares"]["products"] > 0
    gpu = Gpu(memory=1, **found["figures"])
    assert gpu.host > 0 and gpu.latency == 0  # there is nobody to send to
