"""One thread per process and no model hub, here and in what the tests start; GPU tests only where there is one."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which reads it
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is: what is not on this machine is an error at once

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for_a_gpu = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if item not in for_a_gpu]
    config.hook.pytest_deselected(items=for_a_gpu)
