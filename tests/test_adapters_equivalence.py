"""Adapters take the same update on two ranks with shards as on one, in float64, under every policy of FSDP2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("peft")

from .equivalence import Games, Layout, Outcome, too_large, train_game
from .models.large.classes import CLASSES, LENGTH, WIDTH, network, plain
from .ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each process imports diffusers
ALONE = Layout("ddp", 1, 1)
TOGETHER = (Layout("ddp", 2, 1), *(Layout("fsdp2", 2, 2, one, recompute="full") for one in ("full", "zero2", "whole")))


def games(folder: Path) -> Games:
    one = CLASSES["sd3"]
    return {"sd3": ("digits_twin_flow", (
        "run.folder=unused", "parallel.precision=fp64", "parallel.device=cpu", "report=null", "loop.steps=2",
        "data={kind: synthetic, global_batch: 16, shape: [4, 8, 8], num_classes: 5, "
        f"text: {{length: {LENGTH}, width: {WIDTH}, pooled: {one.pooled}}}}}", "objective.warm_up_steps=0",
        f"model.generator={{kind: diffusers, class_name: {one.class_name}, config: {json.dumps(one.settings)}, "
        f"weights: '{folder}', lora: {{rank: 2, targets: [to_q, to_k, to_out.0, linear_1]}}}}",
        "hooks.samples=null", "optimizer.generator.learning_rate=1e-3",
    ))}


def _train(layouts: tuple[Layout, ...], folder: Path) -> list[Outcome]:
    return [train_game("sd3", layout, games(folder)) for layout in layouts]


def test_an_update_of_adapters_on_two_ranks_is_that_of_one(tmp_path) -> None:
    plain("sd3", network("sd3")).save_pretrained(tmp_path)
    ((alone,),) = run_ranks(1, _train, (ALONE,), tmp_path, timeout=300)
    kept = (".lora_", ".second_time.", ".pos_embed.")  # the last: a table, which checkpoints of the class have
    assert alone.tensors and all(any(one in name for one in kept) for name in alone.tensors)
    for outcomes in run_ranks(2, _train, TOGETHER, tmp_path, timeout=500):
        for outcome in outcomes:
            assert outcome.counted == alone.counted and not too_large(outcome, alone, 1e-7)
