"""Small games that every layout of the ranks must play alike, and what it leaves behind: `from .equivalence import`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.plan import ParallelPlan
from afm_scale.run.build import build_manager, build_plan, build_state
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.run.start import start
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import HookList, QuietHook, StepReport
from afm_scale.train.loop import train
from afm_scale.train.state import TrainState

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
    "two steps of D": ("digits_afm", (*_SMALL_GAME, "objective.discriminator_steps=2", "loop.steps=3")),
    "one pass": ("digits_afm", (
        *_SMALL_GAME, "model.generator.times=both", "model.discriminator.target_time=true", "objective.prediction=v",
        "objective.times={kind: any}", "objective.augmentation={probability: 0.5}", "objective.update=one_pass",
        "objective.token_share=0.5", "objective.penalty.terms=in_turn", "optimizer.generator.optimism=1",
        "optimizer.discriminator.optimism=0.5", "loop.steps=5",
    )),
    "one pass, deep": (
        "digits_afm", (*_SMALL_GAME, "model.generator.repetitions=2", "objective.update=one_pass", "loop.steps=3")
    ),
    "flow matching": ("digits_flow_matching", (*_SMALL, "loop.steps=3")),
    # Four updates take it through its three phases: no target of a network's, discrete steps, a derivative.
    "alpha flow": ("digits_alpha_flow", (
        *_SMALL, "loop.steps=4", "model.generator.null_class=true", "objective.class_dropout=0.2",
        "objective.guidance={omega: 0.6, kappa: 0.5, high: 0.9}", "objective.flow_matching_share=0.4",
    )),
    "mean flow by differences": ("digits_mean_flow", (
        *_SMALL, "loop.steps=4", "objective.derivative=central", "objective.tangent=predicted",
        "objective.flow_matching_share=0.5",
    )),
    "twin flow": ("digits_twin_flow", (
        *_SMALL, "loop.steps=4", "data.global_batch=32", "objective.warm_up_steps=1", "model.generator.null_class=true",
        "objective.class_dropout=0.1", "objective.guidance_weight=0.5",
    )),
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
    settings: tuple[str, ...] = ()  # what else differs


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


Games = Mapping[str, tuple[str, tuple[str, ...]]]
"""Recipe and settings by name."""


def train_game(game: str, layout: Layout, games: Games = GAMES) -> Outcome:
    """Plays the game on this rank, one of `layout.ranks` that call this together."""
    config = config_of(game, layout, games)
    ranks = this_rank(layout)
    plan = build_plan(config, ranks)
    return play(config, plan, build_state(config, ranks, plan))


def train_part(game: str, layout: Layout, folder: Path, steps: int, games: Games = GAMES) -> Outcome:
    """Goes on from the newest checkpoint in the folder, if there is one, up to `steps`, and saves another."""
    settings = (*layout.settings, f"run.folder={folder}", f"loop.steps={steps}")
    config = config_of(game, layout._replace(settings=settings), games)
    ranks = this_rank(layout)
    plan = build_plan(config, ranks)
    state, manager = build_state(config, ranks, plan), build_manager(config, ranks)
    start(state, plan, manager, config.run, EventLog(folder / "events.jsonl", enabled=ranks.rank == 0))
    outcome = play(config, plan, state)
    manager.save(state.step, state.tensors(plan), state.scalars())
    manager.close()
    return outcome


def config_of(game: str, layout: Layout, games: Games = GAMES) -> RunConfig:
    recipe, overrides = games[game]
    config = load(RunConfig, recipe, (
        *overrides, f"parallel.plan={layout.plan}", f"loop.accumulation={layout.accumulation}",
        f"parallel.fsdp2.policy={layout.policy}", f"parallel.fsdp2.replicas={layout.replicas}",
        f"parallel.recompute={layout.recompute}", *layout.settings,
    ))
    check(config, layout.ranks)
    return config


def this_rank(layout: Layout) -> Ranks:
    rank = int(os.environ["RANK"])
    return Ranks(rank=rank, local_rank=rank, world_size=layout.ranks, device=torch.device("cpu"))


def play(config: RunConfig, plan: ParallelPlan, state: TrainState) -> Outcome:
    recorder = _Recorder()
    train(state, plan, config.loop, HookList([recorder]))
    terms = {
        name: plan.mean_(torch.stack([report.terms[name] for report in recorder.reports]))
        for name in recorder.reports[0].terms
    }
    norms = {
        f"{name}/gradient norm": torch.stack([report.grad_norms[name] for report in recorder.reports])
        for name in recorder.reports[0].grad_norms
    }
    tensors = {name: whole(tensor).clone() for name, tensor in state.tensors(plan).items()}
    return Outcome(tensors, terms | norms, (state.step, state.images_seen, state.data.state_dict()))


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    assert found.keys() == wanted.keys()
    return {name: float((found[name].double() - wanted[name].double()).abs().max()) for name in wanted}


def too_large(outcome: Outcome, reference: Outcome, tolerance: float) -> dict[str, float]:
    """What differs by more than the tolerance, in absolute terms, by name."""
    found = differences(outcome.tensors, reference.tensors) | differences(outcome.reported, reference.reported)
    return {name: value for name, value in found.items() if not value <= tolerance}
