"""One run that goes from plan to plan and from one number of ranks to another ends as one that stayed where it was.

Every part takes one update, with other samples on every rank, and goes on from the checkpoint of the part before. ZeRO
moves float32 copies of the weights, so all is in float32; `tests/test_deepspeed_equivalence.py` says what float32 needs
to be compared at all. What a plan takes from another one's checkpoint is compared in every bit.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.run.build import build_manager, build_plan, build_state
from afm_scale.run.start import start
from afm_scale.train.hooks.events import EventLog

from .equivalence import Layout, Outcome, config_of, differences, play, this_rank, whole
from .ranks import run_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        find_spec("megatron") is None or find_spec("deepspeed") is None, reason="megatron-core or deepspeed is missing"
    ),
    # DeepSpeed asks for torch's compiler, which uses what torch deprecates, and gathers by a name that torch 2.13 does.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor):FutureWarning"),
]

GAME = "any step, augmented"  # two players, an average, and the normaliser of gradients
TOLERANCE = 1e-6  # of weights and averages; of what else there is: of the largest value
FLOAT32 = (
    "parallel.precision=fp32", "objective.penalty.epsilon=10", "optimizer.generator.eps=1e-4",
    "optimizer.discriminator.eps=1e-4", "optimizer.generator.learning_rate=1e-3",
    "optimizer.discriminator.learning_rate=1e-3",
)
CHAIN = (
    Layout("ddp", 2, 1, settings=FLOAT32),
    Layout("fsdp2", 4, 1, settings=FLOAT32),
    Layout("deepspeed", 2, 1, settings=(*FLOAT32, "parallel.deepspeed.stage=2")),
    Layout("megatron", 2, 1, settings=(*FLOAT32, "parallel.megatron.tensor=2")),
    Layout("ddp", 1, 1, settings=FLOAT32),
)


def take_part(layout: Layout, folder: Path, steps: int) -> tuple[Outcome, list[str]]:
    """Goes on up to `steps`, and saves; what it left behind, and what of the checkpoint it took otherwise."""
    config = config_of(GAME, layout._replace(
        settings=(*layout.settings, f"run.folder={folder}", f"loop.steps={steps}")
    ))
    ranks = this_rank(layout)
    plan = build_plan(config, ranks)
    state, manager = build_state(config, ranks, plan), build_manager(config, ranks)
    newest = manager.latest()
    start(state, plan, manager, config.run, EventLog(folder / "events.jsonl", enabled=ranks.rank == 0))
    taken = {name: whole(tensor) for name, tensor in state.tensors(plan).items()}
    stored = taken if newest is None else read_tensors(newest)
    others = [name for name in taken.keys() | stored.keys() if not torch.equal(taken[name], stored[name])]
    outcome = play(config, plan, state)
    manager.save(state.step, state.tensors(plan), state.scalars())
    manager.close()
    return outcome, others


def test_ddp_fsdp2_zero_megatron_and_one_rank_hand_a_run_on_to_each_other(tmp_path: Path) -> None:
    for steps, layout in enumerate(CHAIN, 1):
        parts = run_ranks(layout.ranks, take_part, layout, tmp_path / "moved", steps, timeout=100)
        assert all(others == [] for _, others in parts), layout
    (moved, _), = parts
    stayed = tmp_path / "stayed"
    ((alone, _),) = run_ranks(1, take_part, CHAIN[-1], stayed, len(CHAIN), timeout=100)

    assert moved.counted == alone.counted and alone.counted[0] == len(CHAIN)
    weights = ("generator.", "discriminator.", "average.")
    found = differences(moved.tensors, alone.tensors)
    assert any(name.startswith("objective.") for name in found)
    scales = {
        name: 1.0 if name.startswith(weights) else max(1.0, float(alone.tensors[name].abs().max())) for name in found
    }
    assert not {name: value for name, value in found.items() if not value <= TOLERANCE * scales[name]}
    last = {name: values[-1:] for name, values in alone.reported.items()}
    for name, value in differences(moved.reported, last).items():
        assert value <= 1e-5 * max(1.0, float(last[name].abs().max())), name
    moved_by = float((alone.tensors["generator.x_embedder.proj.weight"]
                      - alone.tensors["average.x_embedder.proj.weight"]).abs().max())
    assert moved_by > 100 * TOLERANCE  # else agreeing would say little
