from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from afm_scale.train.hooks.metrics import WandbConfig

pytest.importorskip("wandb", reason="the optional package wandb is not installed")


def test_an_offline_run_is_written_under_the_runs_folder_and_again_when_resumed(tmp_path: Path) -> None:
    from afm_scale.train.hooks.wandb import Wandb  # not at the top: it needs the optional package

    for step in (0, 10):
        writer = Wandb(tmp_path, "0123456789abcdef", WandbConfig(project="tests"))
        writer.start(step)
        writer.write({"step": step + 10, "generator/total": 0.5})
        writer.close()
    runs = [re.match(r"offline-run-\d+_\d+-([0-9a-f]{16})", name) for name in os.listdir(tmp_path / "wandb")]
    assert {run[1] for run in runs if run} == {"0123456789abcdef"}
