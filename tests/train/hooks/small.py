"""A run small enough for tests of hooks: real plan, data, objective and loop around a network of a few weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from afm_scale.core.schedules import Constant
from afm_scale.core.types import Role
from afm_scale.data.toys.synthetic import SyntheticLatents, SyntheticLatentsConfig
from afm_scale.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.ddp import DDPPlan
from afm_scale.parallel.fsdp2 import FSDP2Plan
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.optim import OptimizerConfig
from afm_scale.parallel.plan import ParallelPlan
from afm_scale.train.average import Average, AverageConfig
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.events import EventLog
from afm_scale.train.hooks.hook import Hook, HookList, StepReport
from afm_scale.train.hooks.stop import StopHook
from afm_scale.train.loop import LoopConfig, train
from afm_scale.train.state import TrainState

SHAPE = (1, 4, 4)
NUM_CLASSES = 3


class SmallGenerator(nn.Module):
    """Depends on everything it is given."""

    repetitions = 1
    passes = ()

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.labels = nn.Embedding(num_classes, 16)
        self.mix = nn.Linear(17, 16)

    def shardable_blocks(self) -> list[nn.Module]:
        return [self.mix]

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens = torch.cat((x.flatten(1), (s - t).to(x.dtype)[:, None]), dim=1)
        return self.mix(tokens).view_as(x) + self.labels(y).view_as(x)  # a sum: FSDP2 warns of views


def small_weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(name, torch.randn(value.shape, generator=generator) / 4) for name, value in module.state_dict().items()]


def small_plan() -> ParallelPlan:
    """Of the ranks of `run_ranks`, sharded; of this process alone, without a process group, elsewhere."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    if world_size == 1:
        return DDPPlan(ranks, ParallelConfig(plan="ddp", device="cpu"))
    return FSDP2Plan(ranks, ParallelConfig(plan="fsdp2", device="cpu"))


def small_state(plan: ParallelPlan) -> TrainState:
    with torch.device("meta"):
        generator, average = SmallGenerator(), SmallGenerator()
    weights = small_weights(generator)
    optimizer = OptimizerConfig(learning_rate=Constant(value=1e-3))
    data = SyntheticLatentsConfig(global_batch=12, shape=SHAPE, num_classes=NUM_CLASSES)
    return TrainState(
        players={Role.GENERATOR: plan.player(Role.GENERATOR, generator, weights, optimizer)},
        averages={"average": Average(plan.frozen(average, weights), AverageConfig(decay=0.5), plan)},
        objective=FlowMatching(FlowMatchingConfig(), plan.mean_, plan.device),
        data=SyntheticLatents(data, seed=1, rank=plan.rank, world_size=plan.world_size, device="cpu"),
    )


def stop_for(failures: Failures) -> StopHook:
    """The last hook of a run whose events nobody reads."""
    return StopHook(small_plan(), failures, EventLog(Path("unused"), enabled=False))


def run(state: TrainState, plan: ParallelPlan, hooks: Sequence[Hook], *, steps: int) -> None:
    train(state, plan, LoopConfig(steps=steps), HookList(hooks))


def report(step: int, **changes: object) -> StepReport:
    """A step of 8 images and 0.5 seconds."""
    values = {
        "images": 8, "terms": {"generator/total": torch.tensor(float(step))},
        "grad_norms": {"generator": torch.tensor(2.0)}, "learning_rates": {"generator": 1e-3},
        "seconds": 0.5, "data_seconds": 0.1,
    }
    return StepReport(step=step, **{**values, **changes})
