"""Runs on captioned digits with a transformer of diffusers: two ranks, their report, and what they do not go on with.

Minutes, because every process imports diffusers: run by hand (tests/run.sh -m long).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR
from afm_scale.data.toys.captions import every_caption

from .data.small import packed_prompts, slanted_digits_file
from .program import QUIET, end, train_forked
from .test_resume import rows

pytestmark = pytest.mark.long

NETWORK = {
    "kind": "diffusers", "class_name": "QwenImageTransformer2DModel", "times": "gated", "config": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 4, "in_channels": 4,
        "out_channels": 1, "axes_dims_rope": [4, 6, 6],
    },
}


def settings(root: Path, prompts: str, *more: str) -> list[str]:
    data = {"kind": "captioned_mnist", "file": str(root / "digits.npz"), "embeddings": str(root / prompts),
            "global_batch": 8}
    return [
        "digits_flow_matching", *QUIET[1:], f"data={json.dumps(data)}", f"model.generator={json.dumps(NETWORK)}",
        "hooks.metrics.every_steps=1", "report={kind: captioned_mnist, num_samples: 90}", "sampling.num_steps=1", *more,
    ]


def test_two_ranks_train_report_and_refuse_to_go_on_with_another_text_encoder(tmp_path: Path) -> None:
    slanted_digits_file(tmp_path / "digits.npz")
    packed_prompts(tmp_path / "prompts", every_caption())
    packed_prompts(tmp_path / "other", every_caption(), encoder="1")
    folder = tmp_path / "run"
    code, _, stderr = end(train_forked(settings(tmp_path, "prompts", "loop.steps=2"), folder, ranks=2), timeout=280)
    assert code == EXIT_DONE, stderr
    assert [row["step"] for row in rows(folder)] == [1, 2]
    quality = json.loads((folder / "summary.json").read_text())["quality"]
    assert 0 <= quality["following"] <= 1 and quality["compared_with"] == "the test part"
    code, _, stderr = end(train_forked(settings(tmp_path, "other", "loop.steps=4"), folder, ranks=2), timeout=280)
    assert code == EXIT_USER_ERROR
    assert stderr.count("error: ") == 1 and "the prompts were embedded by another text encoder" in stderr
