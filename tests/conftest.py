"""One thread per process, no model hub and no launcher's words, here and in what the tests start.

GPU tests run only where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which reads it
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is: what is not on this machine is an error at once

for _name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID"):
    os.environ.pop(_name, None)  # the tests may run inside of a job; what they start is not part of it

import pytest  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

STARTERS = {
    "run_ranks", "run", "start", "train", "train_forked", "ForkedProgram", "Launched", "Trials", "judge", "subprocess",
    "multiprocessing",
}
"""By these names modules of tests start processes: tests.ranks, tests.program, tests.launched, tests.damage,
tests.ends, and the standard library's."""


@pytest.fixture(autouse=True)
def no_process_group_is_left_behind() -> Iterator[None]:
    yield
    assert not dist.is_initialized()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not STARTERS.isdisjoint(vars(item.module)):
            item.add_marker("processes")
    if torch.cuda.is_available():
        return
    for_a_gpu = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if item not in for_a_gpu]
    config.hook.pytest_deselected(items=for_a_gpu)
