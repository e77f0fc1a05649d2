"""A small adversarial run of digits with a pilot, whose evaluations and stalls a test has chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from afm_scale.core.run_folder import RunFolder
from afm_scale.core.types import Role
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.plan import ParallelPlan
from afm_scale.run.build import build_manager, build_plan, build_state
from afm_scale.run.config import RunConfig
from afm_scale.run.evaluations import Evaluations
from afm_scale.run.pilot import build_pilot
from afm_scale.run.start import start
from afm_scale.train.evaluation import Evaluation
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import HookList, QuietHook, StepReport
from afm_scale.train.pilot.pilot import Pilot
from afm_scale.train.state import TrainState
from afm_scale.train.steered import train_steered
from tests.equivalence import Layout, config_of, this_rank

QUALITY = "frechet_distance"
PHASES = "pilot.phases=[{name: a, discriminator_reload: on_stagnation}]"
ALONE = Layout("ddp", 1, 1)
RING = "pilot.ring={every_steps: 2, keep: 4}"
MEASURED = (
    "data.part=train", "hooks.evaluation={kind: digits, every_steps: 1000, num_samples: 100}", "loop.steps=1000",
)


LAYOUTS = {
    "ddp": Layout("ddp", 2, 1), "fsdp2": Layout("fsdp2", 2, 1),
    **{
        f"zero{stage}": Layout(
            "deepspeed", 2, 1, settings=("parallel.precision=fp32", f"parallel.deepspeed.stage={stage}")
        )
        for stage in (1, 2, 3)
    },
    "megatron": Layout("megatron", 2, 1, settings=("parallel.megatron.tensor=2",)),
}


@dataclass
class Game:
    """One rank's part of a run."""

    config: RunConfig
    plan: ParallelPlan
    state: TrainState
    pilot: Pilot
    manager: object


def game(folder: Path, *settings: str, layout: Layout = ALONE) -> Game:
    """At its newest checkpoint, or new."""
    config = config_of("deep", layout._replace(settings=(
        *layout.settings, *MEASURED, "checkpoint.every_steps=1000", "model.generator.repetitions=1", PHASES, RING,
        f"run.folder={folder}", *settings,
    )))
    alone = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    ranks = alone if layout.ranks == 1 else this_rank(layout)
    plan = build_plan(config, ranks)
    state = build_state(config, ranks, plan)
    events = EventLog(RunFolder(folder).events, enabled=plan.rank == 0)
    manager = build_manager(config, ranks)
    pilot = build_pilot(config, plan, state, events, Evaluations(config, plan), manager)
    start(state, plan, manager, config.run, events)
    return Game(config, plan, state, pilot, manager)


class Stalls(QuietHook):
    """Tells the pilot a quality at some steps, and that training stalls there."""

    def __init__(self, pilot: Pilot, qualities: Mapping[int, float]) -> None:
        self._pilot, self._qualities = pilot, qualities

    def after_step(self, state: TrainState, report: StepReport) -> None:
        if state.step in self._qualities:
            figures = {QUALITY: self._qualities[state.step]}
            self._pilot.observe(Evaluation(
                step=state.step, images_seen=state.images_seen, figures=figures, seconds=0.0
            ))
            state.pilot = replace(state.pilot, fired=("stall",))


def play(of: Game, steps: int, qualities: Mapping[int, float] | None = None) -> None:
    """Trains up to this step, going back if need be; the last boundary is not acted on yet."""
    train_steered(
        of.state, of.plan, replace(of.config.loop, steps=steps), HookList([Stalls(of.pilot, qualities or {})]), of.pilot
    )


def plant(
    of: Game, role: Role, places: Collection[int], spoil: Callable[[Tensor], Tensor], rank: int,
    at: Callable[[Game], int] = lambda of: of.state.step,
) -> None:
    """Spoils the loss of a player, and so its whole gradient, at some steps, or other places, on one rank."""
    backward = of.plan.backward

    def planted(player, loss: Tensor) -> None:  # type: ignore[no-untyped-def]
        hit = player.role is role and at(of) in places and of.plan.rank == rank
        backward(player, spoil(loss) if hit else loss)

    of.plan.backward = planted


def position(of: Game) -> int:
    """In the data: samples handed out so far, the turn's own included."""
    return of.state.data.state_dict()["consumed"]


def save(of: Game) -> None:
    """A checkpoint, as the hook makes it."""
    of.pilot.before_save(of.state)
    of.manager.save(of.state.step, of.state.tensors(of.plan), of.state.scalars())
    of.manager.wait()


def values(of: Game) -> dict[str, Tensor]:
    return {name: whole(tensor).clone() for name, tensor in of.state.tensors(of.plan).items()}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def differing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> set[str]:
    assert found.keys() == wanted.keys()
    return {name for name in found if not torch.equal(found[name], wanted[name])}


def same_on_all(found: Mapping[str, Tensor]) -> bool:
    """Whether all ranks hold the same. Collective."""
    sums = torch.stack([value.double().sum().cpu() for value in found.values()])
    mean = sums.clone()
    dist.all_reduce(mean)
    return bool(torch.equal(mean / dist.get_world_size(), sums))


def under_every_plan(test: Callable) -> Callable:  # type: ignore[type-arg]
    """Calls a test with `layout`, two ranks each; skips those whose package is not installed."""
    layouts = [
        pytest.param(layout, id=name, marks=pytest.mark.skipif(
            layout.plan in ("deepspeed", "megatron") and find_spec(layout.plan) is None,
            reason=f"{layout.plan} is not installed",
        ))
        for name, layout in LAYOUTS.items()
    ]
    # DeepSpeed asks for torch's compiler, which uses what torch deprecates, and gathers by a name that torch 2.13 does.
    for mark in (
        pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
        pytest.mark.filterwarnings(
            "ignore:`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor):FutureWarning"
        ),
        pytest.mark.processes, pytest.mark.slow, pytest.mark.parametrize("layout", layouts),
    ):
        test = mark(test)
    return test


def digest(of: Game) -> str:
    """Of all tensors and scalars of the state."""
    sha = hashlib.sha256(repr(of.state.scalars()).encode())
    for name, tensor in sorted(values(of).items()):
        sha.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def acts(folder: Path) -> list[tuple[int, str, int | None]]:
    return [
        (event["step"], event["act"], event.get("to"))
        for event in RunFolder(folder).read_events() if event["kind"] == "act"
    ]
