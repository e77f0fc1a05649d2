"""Every other class of transformers of diffusers takes the same update on two ranks with shards as on one.

In float64 but for what classes compute in float32 whatever they are given: norms, rotary positions, Sana's linear
attention. So a weight differs by bits of float32 there, of an update of 1e-3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from afm_scale.models.large.table import ADAPTERS

from .equivalence import Games, Layout, Outcome, too_large, train_game
from .models.large.classes import CLASSES, LENGTH, WIDTH, network, plain
from .ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each process imports diffusers

ALONE, SHARDED = Layout("ddp", 1, 1), Layout("fsdp2", 2, 1, "full", recompute="full")
# What the last block makes of the text nobody asks for, and adding to all keys alike changes nothing.
STILL = {
    "qwen_image": ("1.attn.add_q_proj", "1.attn.norm_added_q", "1.attn.to_add_out", "1.txt_mlp"),
    "sd3": ("1.attn.add_q_proj", "1.attn.norm_added_q"), "sana": ("attn2.to_k.bias",),
}


def games(folder: Path) -> Games:
    return {name: ("digits_twin_flow", (
        "run.folder=unused", "parallel.precision=fp64", "parallel.device=cpu", "report=null", "loop.steps=1",
        "data={kind: synthetic, global_batch: 8, shape: [4, 8, 8], num_classes: 5, "
        f"text: {{length: {LENGTH}, width: {WIDTH}, pooled: {one.pooled}}}}}", "objective.warm_up_steps=0",
        f"model.generator={{kind: diffusers, class_name: {one.class_name}, config: {json.dumps(one.settings)}, "
        f"weights: '{folder / name}'}}",
        "objective.class_dropout=0.1", "objective.guidance_weight=0.5", "hooks.samples=null",
        "optimizer.generator.learning_rate=1e-3",
    )) for name, one in CLASSES.items()}


def _train(layout: Layout, folder: Path) -> dict[str, Outcome]:
    return {name: train_game(name, layout, games(folder)) for name in CLASSES}


class Found(NamedTuple):
    alone: dict[str, Outcome]
    together: list[dict[str, Outcome]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """One update from weights that are moved off zero, so that it moves all of them."""
    folder = tmp_path_factory.mktemp("weights")
    for name in CLASSES:
        plain(name, network(name)).save_pretrained(folder / name)
    (alone,) = run_ranks(1, _train, ALONE, folder, timeout=500)
    return Found(alone, run_ranks(2, _train, SHARDED, folder, timeout=500))


@pytest.mark.parametrize("name", CLASSES)
def test_an_update_of_two_ranks_with_shards_is_that_of_one(found, name) -> None:
    for outcomes in found.together:
        assert outcomes[name].counted == found.alone[name].counted
        assert not too_large(outcomes[name], found.alone[name], 1e-7)


@pytest.mark.parametrize("name", CLASSES)
def test_the_update_compared_is_finite_and_moves_every_weight(found, name) -> None:
    tensors, start = found.alone[name].tensors, network(name).transformer
    moved = {part: tensors[f"generator.transformer.{part}"] - value for part, value in start.named_parameters()}
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())
    still = [part for part, by in moved.items() if by.abs().max() < 1e-6]
    assert all(any(one in part for one in STILL.get(name, ())) for part in still), still
    second = {part: value for part, value in tensors.items() if part.startswith("generator.second_time.")}
    embedder = start.get_submodule(ADAPTERS[CLASSES[name].class_name].time_embedder).state_dict()
    assert second and all(
        (value - embedder[part.removeprefix("generator.second_time.")]).abs().max() > 1e-6
        for part, value in second.items()
    )
