"""A small adversarial run of digits with a pilot, whose evaluations and stalls a test has chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from afm_scale.core.run_folder import RunFolder
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
from afm_scale.train.loop import train
from afm_scale.train.pilot.pilot import Pilot
from afm_scale.train.state import TrainState
from tests.equivalence import Layout, config_of, this_rank

QUALITY = "frechet_distance"
PHASES = "pilot.phases=[{name: a, discriminator_reload: on_stagnation}]"
ALONE = Layout("ddp", 1, 1)
RING = "pilot.ring={every_steps: 2, keep: 4}"
MEASURED = (
    "data.part=train", "hooks.evaluation={kind: digits, every_steps: 1000, num_samples: 100}", "loop.steps=1000",
)


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
    pilot = build_pilot(config, plan, state, events, Evaluations(config, plan))
    manager = build_manager(config, ranks)
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
    """Trains up to this step; the last boundary is not acted on yet."""
    train(
        of.state, of.plan, replace(of.config.loop, steps=steps), HookList([Stalls(of.pilot, qualities or {})]), of.pilot
    )


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
