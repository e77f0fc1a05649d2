"""The same training whatever the number of ranks, the number of microbatches and the plan.

Every layout below takes ten updates in float64 from the same recipe, with other samples on every rank. Only the order
of sums may differ, so everything that a step leaves behind must agree to 1e-9.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from afm_scale.parallel.fsdp2 import FSDP2Plan
from afm_scale.parallel.launch import Ranks
from afm_scale.run.build import build_plan, build_state
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.train.hooks.hook import HookList, QuietHook, StepReport
from afm_scale.train.loop import train
from afm_scale.train.state import TrainState

from .ranks import RankFailure, run_ranks

TOLERANCE = 1e-9

pytestmark = pytest.mark.slow

_ANY = (
    "run.folder=unused", "data.global_batch=8", "parallel.precision=fp64", "parallel.device=cpu", "report=null",
)
_SMALL = (
    *_ANY, "model.generator.hidden_size=16", "model.generator.depth=2", "model.generator.num_heads=2",
    "optimizer.generator.learning_rate=1e-3",
)
# The discriminator learns slowly: its key biases have no gradient but rounding noise, which the finite differences of
# R1 and R2 enlarge and Adam, with beta1 = 0, turns into steps. At 1e-3 these alone come to 8e-10 after ten updates.
_SMALL_GAME = (
    *_SMALL, "model.discriminator.hidden_size=16", "model.discriminator.depth=2", "model.discriminator.num_heads=2",
    "optimizer.discriminator.learning_rate=1e-4", "objective.penalty.share=0.25", "loop.steps=10",
)
GAMES = {
    "any step, augmented": ("digits_afm", (
        *_SMALL_GAME, "model.generator.times=both", "model.discriminator.target_time=true", "objective.prediction=v",
        "objective.times={kind: any}", "objective.augmentation={probability: 0.5}",
    )),
    "deep": ("digits_afm", (*_SMALL_GAME, "model.generator.repetitions=2")),
    "deeper": ("digits_afm", (*_SMALL_GAME, "model.generator.repetitions=4", "loop.steps=3")),
    "flow matching": ("digits_flow_matching", (*_SMALL, "loop.steps=3")),
    "classification": ("classifier_digits", (
        *_ANY, "model.classifier.hidden_size=16", "model.classifier.num_heads=2",
        "optimizer.classifier.learning_rate=1e-3", "loop.steps=3",
    )),
}


class Layout(NamedTuple):
    plan: str
    ranks: int
    accumulation: int
    policy: str = "whole"  # of FSDP2
    replicas: int = 1  # of FSDP2's shards
    recompute: str = "none"


REFERENCE = Layout("ddp", 1, 1)
LAYOUTS = (
    Layout("ddp", 1, 4),
    Layout("fsdp2", 1, 1),
    Layout("ddp", 2, 1),
    Layout("ddp", 2, 2),
    Layout("fsdp2", 2, 1),
    Layout("fsdp2", 2, 2),
    Layout("fsdp2", 2, 1, "full"),
    Layout("fsdp2", 2, 2, "full"),
    Layout("fsdp2", 2, 1, "zero2"),
    Layout("fsdp2", 2, 2, "zero2"),
    Layout("fsdp2", 4, 1),
    Layout("fsdp2", 4, 1, "full", 2),
    Layout("fsdp2", 4, 2, "zero2", 2),
    Layout("ddp", 1, 1, recompute="{kind: every, k: 2}"),
    Layout("ddp", 2, 2, recompute="selective"),
    Layout("fsdp2", 2, 1, "full", recompute="full"),
    Layout("fsdp2", 2, 2, "zero2", recompute="per_repetition"),
)


@dataclass
class Outcome:
    """What a run left behind: the tensors of a checkpoint, whole, and what each step reported."""

    tensors: dict[str, Tensor]
    reported: dict[str, Tensor]  # losses (means over the ranks) and gradient norms, [steps]
    counted: tuple[int, int, Mapping[str, int]]  # steps, images, the position of the data


class _Recorder(QuietHook):
    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self.reports.append(report)


def _train(game: str, layout: Layout) -> Outcome:
    recipe, overrides = GAMES[game]
    layout_overrides = (
        f"parallel.plan={layout.plan}", f"loop.accumulation={layout.accumulation}",
        f"parallel.fsdp2.policy={layout.policy}", f"parallel.fsdp2.replicas={layout.replicas}",
        f"parallel.recompute={layout.recompute}",
    )
    config = load(RunConfig, recipe, (*overrides, *layout_overrides))
    rank = int(os.environ["RANK"])
    ranks = Ranks(rank=rank, local_rank=rank, world_size=layout.ranks, device=torch.device("cpu"))
    check(config, ranks.world_size)
    plan = build_plan(config, ranks)
    state, recorder = build_state(config, ranks, plan), _Recorder()
    train(state, plan, config.loop, HookList([recorder]))
    terms = {
        name: plan.mean_(torch.stack([report.terms[name] for report in recorder.reports]))
        for name in recorder.reports[0].terms
    }
    norms = {
        f"{name}/gradient norm": torch.stack([report.grad_norms[name] for report in recorder.reports])
        for name in recorder.reports[0].grad_norms
    }
    tensors = {name: _whole(tensor).clone() for name, tensor in state.tensors(plan).items()}
    return Outcome(tensors, terms | norms, (state.step, state.images_seen, state.data.state_dict()))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _train_all(layouts: list[Layout]) -> dict[tuple[str, Layout], Outcome]:
    return {(game, layout): _train(game, layout) for layout in layouts for game in GAMES}


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, Layout], list[Outcome]]:
    """Of every game and layout, on every rank: the processes are started once for each number of ranks."""
    found: dict[tuple[str, Layout], list[Outcome]] = {}
    for num_ranks in (1, 2, 4):
        layouts = [layout for layout in (REFERENCE, *LAYOUTS) if layout.ranks == num_ranks]
        of_ranks = run_ranks(num_ranks, _train_all, layouts, timeout=280)
        found |= {key: [outcomes[key] for outcomes in of_ranks] for key in of_ranks[0]}
    return found


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    assert found.keys() == wanted.keys()
    return {name: float((found[name].double() - wanted[name].double()).abs().max()) for name in wanted}


def _too_large(outcome: Outcome, reference: Outcome) -> dict[str, float]:
    differences = _differences(outcome.tensors, reference.tensors)
    differences |= _differences(outcome.reported, reference.reported)
    return {name: value for name, value in differences.items() if not value <= TOLERANCE}


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ten_updates_do_not_depend_on_the_layout(outcomes: dict, game: str, layout: Layout) -> None:
    reference = outcomes[game, REFERENCE][0]
    for outcome in outcomes[game, layout]:
        assert outcome.counted == reference.counted
        assert not _too_large(outcome, reference)


@pytest.mark.parametrize("game", GAMES)
def test_the_updates_compared_moved_every_weight(outcomes: dict, game: str) -> None:
    """Else agreeing would say little."""
    tensors = outcomes[game, REFERENCE][0].tensors
    moments = {name: tensor for name, tensor in tensors.items() if name.endswith("exp_avg_sq")}
    assert len(moments) == sum(name.endswith(".exp_avg") for name in tensors) > 20
    assert all(tensor.any() for tensor in moments.values())
    learner = "classifier" if game == "classification" else "generator"
    weights = [name for name in tensors if name.startswith(f"{learner}.") and name != f"{learner}.pos_embed"]
    behind = {name: tensors[name] - tensors[name.replace(learner, "average", 1)] for name in weights}
    assert all(difference.abs().max() > 1e-5 for difference in behind.values())


def _train_without_rest(game: str, layout: Layout) -> Outcome:
    FSDP2Plan.rest = lambda plan, module: None
    return _train(game, layout)


def _train_with_norms_over_replicas(game: str, layout: Layout) -> Outcome:
    FSDP2Plan._sum_over_shards_ = lambda plan, value: plan.mean_(value) * plan.world_size
    return _train(game, layout)


def test_a_plan_that_never_rests_cannot_pass() -> None:
    """The frozen copies of weights that are to learn give losses without a graph."""
    with pytest.raises(RankFailure, match="does not require grad"):
        run_ranks(2, _train_without_rest, "any step, augmented", Layout("fsdp2", 2, 1, "zero2"), timeout=100)


def test_a_norm_that_counts_replicas_twice_would_be_seen(outcomes: dict) -> None:
    game, layout = "flow matching", Layout("fsdp2", 4, 1, "zero2", 2)
    for outcome in run_ranks(4, _train_with_norms_over_replicas, game, layout, timeout=100):
        assert "generator/gradient norm" in _too_large(outcome, outcomes[game, REFERENCE][0])
