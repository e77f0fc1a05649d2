"""What `inspect_checkpoint` shows, by its tool and as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from afm_scale.__main__ import main
from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.tensors import digest

TOOL = Path(__file__).parents[2] / "tools" / "inspect_checkpoint.py"


@pytest.fixture
def shown_by(capsys: pytest.CaptureFixture[str]):
    """Runs the command in this process; it must succeed and say nothing on stderr."""

    def run(*arguments: str | Path) -> str:
        code = main(["inspect_checkpoint", *map(str, arguments)])
        output = capsys.readouterr()
        assert code == 0 and output.err == ""
        return output.out

    return run


def test_a_checkpoint_is_shown_with_its_digest(tmp_path: Path, shown_by: Callable[..., str]) -> None:
    description = {"config": {"run": {"folder": "runs/x"}}}
    config = CheckpointConfig(every_steps=1)
    manager = CheckpointManager(tmp_path / "checkpoints", config, rank=0, world_size=1, description=description)
    named = {"generator.a": torch.ones(1000), "generator.b": torch.ones(2, 3)}
    named |= {"optimizer.generator.a.step": torch.ones(())}
    manager.save(12, named, {"images_seen": 34})
    manager.close()
    shown = shown_by(tmp_path, "--digest").splitlines()
    lines = {line.split()[0]: line.split() for line in shown if line}
    assert lines["step"] == ["step", "12"]
    assert lines["run"] == ["run", "runs/x"]
    assert lines["generator"] == ["generator", "2", "1,006", "4,024"]
    assert lines["total"] == ["total", "3", "1,007", "4,028"]
    assert shown[-1] == digest(tmp_path / "checkpoints" / "step_00000012")
    content = json.loads(shown_by(tmp_path / "checkpoints" / "step_00000012", "--json"))
    assert content["scalars"] == {"images_seen": 34} and content["tensors"]["generator.b"]["shape"] == [2, 3]


def test_a_wrong_path_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, TOOL, tmp_path / "absent"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 2 and shown.stdout == ""
    assert "is not a folder" in shown.stderr and len(shown.stderr.splitlines()) == 1
