"""A guided training is the same whatever the number of ranks and the plan, and whether its guides are compiled.

The guides are trained here, a few steps each, and read from their runs as a user's would be.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE
from afm_scale.parallel.launch import Ranks
from afm_scale.run.build import build_plan, build_state
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.train.hooks.hook import HookList
from afm_scale.train.loop import train

from .ranks import run_ranks

TOLERANCE = 1e-9

pytestmark = pytest.mark.slow

_SIZE = "{kind: dit, patch_size: 4, hidden_size: 16, depth: 2, num_heads: 2"
_CLASSIFIER = f"model.classifier={_SIZE}, weights: null}}"
_GUIDED = (
    "run.folder=unused", "data.global_batch=8", "parallel.precision=fp64", "parallel.device=cpu", "report=null",
    "loop.steps=3", f"model.generator={_SIZE}, times: none}}", f"model.discriminator={_SIZE}, target_time: false}}",
    "optimizer.generator.learning_rate=1e-3", "optimizer.discriminator.learning_rate=1e-4",
)
_KINDS = ("flow", "velocity")


class Layout(NamedTuple):
    plan: str
    ranks: int
    policy: str = "full"
    compiled: bool = False


REFERENCE = Layout("ddp", 1)
LAYOUTS = (Layout("ddp", 2), Layout("fsdp2", 2), Layout("fsdp2", 2, "whole"))
COMPILED = Layout("fsdp2", 1, compiled=True)


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `classifier` and `flow`."""
    folder = tmp_path_factory.mktemp("guides")
    small = ("loop.steps=3", "data.global_batch=32", "report=null", "parallel.device=cpu", "parallel.plan=ddp",
             "hooks.samples=null", "hooks.metrics.tensorboard=false", "average.decay=0.0")
    assert main([
        "train", "classifier_digits", f"run.folder={folder / 'classifier'}", _CLASSIFIER, *small,
        "optimizer.classifier.learning_rate=1e-2",
    ]) == EXIT_DONE
    assert main([
        "train", "digits_flow_matching", f"run.folder={folder / 'flow'}", "objective.class_dropout=0.3",
        f"model.generator={_SIZE}, times: source, null_class: true}}", *small,
        "optimizer.generator.learning_rate=1e-2",
    ]) == EXIT_DONE
    return folder


def _train(kind: str, layout: Layout, guides: Path) -> dict[str, Tensor]:
    """What three steps leave behind, and whether guidance had a say: the run without it is trained beside it."""
    guide = {
        "none": (),
        "flow": (_CLASSIFIER, f"model.classifier.weights={guides / 'classifier'}"),
        "velocity": (f"model.flow={guides / 'flow'}",),
    }[kind]
    guidance = "null" if kind == "none" else f"{{kind: {kind}, weight: 30.0, low: 0.1, high: 0.9}}"
    config = load(RunConfig, "digits_afm", (
        *_GUIDED, *guide, f"objective.guidance={guidance}", f"parallel.plan={layout.plan}",
        f"parallel.fsdp2.policy={layout.policy}", f"model.compile_guides={str(layout.compiled).lower()}",
    ))
    rank = int(os.environ["RANK"])
    ranks = Ranks(rank=rank, local_rank=rank, world_size=layout.ranks, device=torch.device("cpu"))
    check(config, ranks.world_size)
    plan = build_plan(config, ranks)
    state = build_state(config, ranks, plan)
    found = list(state.frozen.values())
    assert len(found) == (kind != "none") and not any(p.requires_grad for guide in found for p in guide.parameters())
    if layout.plan == "fsdp2":
        assert all(isinstance(p, DTensor) for guide in found for p in guide.parameters())
    train(state, plan, config.loop, HookList([]))
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()).clone()
        for name, tensor in state.tensors(plan).items()
    }


def _train_all(runs: list[tuple[str, Layout]], guides: Path) -> dict[tuple[str, Layout], dict[str, Tensor]]:
    return {(kind, layout): _train(kind, layout, guides) for kind, layout in runs}


Outcomes = dict[tuple[str, Layout], list[dict[str, Tensor]]]


@pytest.fixture(scope="module")
def outcomes(guides: Path) -> Outcomes:
    """Of every kind and layout, on every rank."""
    found: Outcomes = {}
    for num_ranks, layouts in ((1, (REFERENCE,)), (2, LAYOUTS)):
        runs = [(kind, layout) for kind in ("none", *_KINDS) for layout in layouts]
        of_ranks = run_ranks(num_ranks, _train_all, runs, guides, timeout=200)
        found |= {key: [outcomes[key] for outcomes in of_ranks] for key in of_ranks[0]}
    return found


def _check_same(reference: dict[str, Tensor], of_ranks: list[dict[str, Tensor]]) -> None:
    for tensors in of_ranks:
        assert tensors.keys() == reference.keys()
        differences = {name: float((tensors[name] - reference[name]).abs().max()) for name in reference}
        assert not {name: value for name, value in differences.items() if not value <= TOLERANCE}


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_guided_updates_do_not_depend_on_ranks_and_plan(outcomes: Outcomes, kind: str, layout: Layout) -> None:
    _check_same(outcomes[kind, REFERENCE][0], outcomes[kind, layout])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler for the CPU")
@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="compiled attention of torch 2.11 mixes dtypes in float64 on the CPU"
)
@pytest.mark.filterwarnings("ignore")  # torch's compiler imports and touches what torch itself warns of
def test_compiled_guides_say_the_same(outcomes: Outcomes, guides: Path) -> None:
    (compiled,) = run_ranks(1, _train_all, [(kind, COMPILED) for kind in _KINDS], guides, timeout=200)
    for kind in _KINDS:
        _check_same(outcomes[kind, REFERENCE][0], [compiled[kind, COMPILED]])


@pytest.mark.parametrize("kind", _KINDS)
def test_the_guide_had_a_say(outcomes: Outcomes, kind: str) -> None:
    """Else agreeing would say little."""
    guided, unguided = outcomes[kind, REFERENCE][0], outcomes["none", REFERENCE][0]
    assert max(float((guided[name] - unguided[name]).abs().max()) for name in guided) > 1e-4
