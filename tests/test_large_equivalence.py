"""A transformer of diffusers that is told prompts takes the same updates under every plan.

All in float64 but for what the class computes in float32 whatever it is given (its norms and rotary positions): a
product that is rounded in another way for another batch now and then moves a number there by a bit of float32. Games
that divide differences of the network's outputs by a short time enlarge that, measured to at most 3e-7.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.models.large.small import CLASS, SETTINGS, network, plain

from .equivalence import Layout, Outcome, too_large, train_game
from .ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each process imports diffusers

_ANY = (
    "run.folder=unused", "parallel.precision=fp64", "parallel.device=cpu", "report=null", "loop.steps=2",
    "data={kind: synthetic, global_batch: 8, shape: [4, 8, 8], num_classes: 5, "
    "text: {length: 5, width: 12, pooled: 6}}",
    f"model.generator={{kind: diffusers, class_name: {CLASS}, config: {json.dumps(SETTINGS)}}}",
    "optimizer.generator.learning_rate=1e-3", "hooks.samples=null",
)
TWIN_FLOW, MEAN_FLOW, AFM = "twin flow", "mean flow by differences", "adversarial flow"
GAMES = {
    TWIN_FLOW: ("digits_twin_flow", (
        *_ANY, "data.global_batch=16", "objective.warm_up_steps=0", "objective.class_dropout=0.1",
        "objective.guidance_weight=0.5",
    )),
    MEAN_FLOW: ("digits_mean_flow", (
        *_ANY, "objective.derivative=central", "objective.tangent=predicted", "objective.flow_matching_share=0.5",
    )),
    AFM: ("digits_afm", (
        *_ANY, "objective.prediction=v", "objective.times={kind: any}", "objective.penalty.share=0.25",
        "model.discriminator.target_time=true", "model.discriminator.hidden_size=16", "model.discriminator.depth=2",
        "model.discriminator.num_heads=2", "model.discriminator.pooled_width=6",
        "optimizer.discriminator.learning_rate=1e-4",
    )),
}
TOLERANCES = {TWIN_FLOW: 1e-7, MEAN_FLOW: 1e-5, AFM: 1e-7}
ALONE = Layout("ddp", 1, 1)
LAYOUTS = {
    Layout("fsdp2", 2, 1, "full", recompute="full"): tuple(GAMES), Layout("fsdp2", 2, 1, "zero2"): (TWIN_FLOW,),
    Layout("ddp", 2, 2): (TWIN_FLOW,),
}
HYBRID = Layout("fsdp2", 4, 1, "full", 2)  # two copies of two shards


def _train(layouts: dict[Layout, tuple[str, ...]], weights: Path) -> dict[tuple[str, Layout], Outcome]:
    begins = (f"model.generator.weights={weights}",)
    return {
        (game, layout): train_game(game, layout._replace(settings=(*layout.settings, *begins)), GAMES)
        for layout, games in layouts.items() for game in games
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all games begin with: from scratch a part of the network would not move in the first updates."""
    folder = tmp_path_factory.mktemp("pretrained")
    plain(network()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(weights: Path) -> dict[tuple[str, Layout], Outcome]:
    return run_ranks(1, _train, {ALONE: tuple(GAMES)}, weights, timeout=500)[0]


@pytest.fixture(scope="module")
def together(weights: Path) -> list[dict[tuple[str, Layout], Outcome]]:
    return run_ranks(2, _train, LAYOUTS, weights, timeout=500)


@pytest.mark.parametrize("layout, game", [(layout, game) for layout in LAYOUTS for game in LAYOUTS[layout]], ids=str)
def test_updates_do_not_depend_on_the_layout(together, alone, layout, game) -> None:
    reference = alone[game, ALONE]
    for found in together:
        outcome = found[game, layout]
        assert outcome.counted == reference.counted
        assert not too_large(outcome, reference, TOLERANCES[game])


@pytest.mark.long
def test_nor_where_shards_are_copied(weights, alone) -> None:
    reference = alone[TWIN_FLOW, ALONE]
    for found in run_ranks(4, _train, {HYBRID: (TWIN_FLOW,)}, weights, timeout=800):
        assert not too_large(found[TWIN_FLOW, HYBRID], reference, TOLERANCES[TWIN_FLOW])


@pytest.mark.parametrize("game", GAMES)
def test_the_updates_compared_moved_every_weight_but_those_of_text_that_is_thrown_away(alone, game) -> None:
    tensors = alone[game, ALONE].tensors
    names = [name.removeprefix("generator.") for name in tensors if name.startswith("generator.")]
    still = {name for name in names if torch.equal(tensors[f"generator.{name}"], tensors[f"average.{name}"])}
    last, parts = "transformer.transformer_blocks.1.", ("txt_mlp", "to_add_out", "add_q_proj", "norm_added_q")
    unused = {name for name in names if name.startswith(last) and any(part in name for part in parts)}
    of_intervals = {name for name in names if name.startswith("second_time")}
    assert len(names) > 80 and still <= unused | (of_intervals if game == MEAN_FLOW else set())
