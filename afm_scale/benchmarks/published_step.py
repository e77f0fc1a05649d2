"""The published way of taking a training step of AFM, to be timed beside ours: the same method, none of the savings.

What the published implementation does, as far as it costs time or memory:

- TF32 matrix products, float32 everything else; plain PyTorch: nothing compiled, fused or recomputed
- whole copies of both networks, both moments of AdamW (although beta1 = 0) and the average on every rank
- D and the guiding classifier compute all rows of their last block, of which one is read
- D is called once in its own turn, on real, fake and their perturbed copies at once; in the generator's turn once on
  the real samples and once on the fake ones
- microbatches are not surveyed: each normalises its gradient by itself, which changes the method (gradient_scale.py)

With one microbatch its losses and gradients are ours. Cheaper than there: one rank goes without the wrapper of DDP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.random import Draws
from ..core.types import Batch, Discriminator, Loss, Networks, Reduce, Role
from ..models.dit import Backbone
from ..objectives.afm import AdversarialFlow, AFMConfig
from ..parallel.config import ParallelConfig
from ..parallel.ddp import DDPPlan
from ..parallel.launch import Ranks
from ..parallel.optim import OptimizerConfig
from ..parallel.plan import Player, Weights
from ..run.build import build_state
from ..run.config import RunConfig
from ..train.state import TrainState

Calls = Literal["one", "four"]
"""Of D in its own turn: one, as published, or one each for real, fake, perturbed real and perturbed fake samples."""


def reference_config(config: RunConfig, accumulation: int | None) -> RunConfig:
    """The recipe as the published implementation would run it; `accumulation` None: in the recipe's microbatches.

    Raises ConfigError for another objective. float64, which is for checks, stays.
    """
    if config.objective.kind != AFMConfig.kind:
        raise ConfigError(
            f"--reference: the published implementation is of objective 'afm', this recipe has "
            f"{config.objective.kind!r}; leave out --reference"
        )
    parallel = ParallelConfig(
        plan="ddp", device=config.parallel.device, timeout_seconds=config.parallel.timeout_seconds, ops="torch",
        precision="fp64" if config.parallel.precision == "fp64" else "tf32", compile=False,
    )
    return replace(
        config, parallel=parallel, model=replace(config.model, compile_guides=False),
        objective=replace(
            config.objective, update="alternating", token_share=1.0,
            penalty=replace(config.objective.penalty, precise=False, terms="both"),
        ),
        loop=replace(config.loop, accumulation=accumulation or config.loop.accumulation),
    )


def build_reference(config: RunConfig, ranks: Ranks, calls: Calls) -> tuple[TrainState, PublishedPlan]:
    """The state of a run of a `reference_config`, at step 0 and with the same weights as ours."""
    plan = PublishedPlan(ranks, config.parallel)
    state = build_state(config, ranks, plan)
    state.objective = PublishedFlow(config.objective, plan.mean_, plan.device, calls)
    return state, plan


class PublishedPlan(DDPPlan):
    """DDP with torch's AdamW, and networks that compute whatever they do not need."""

    def player(self, role: Role, module: nn.Module, weights: Weights, optimizer: OptimizerConfig) -> Player:
        player = super().player(role, _in_full(module), weights, optimizer)
        (group,) = player.optimizer.param_groups
        player.optimizer = torch.optim.AdamW(
            group["params"], lr=optimizer.learning_rate(0), betas=optimizer.betas, eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        )
        return player

    def frozen(self, module: nn.Module, weights: Weights) -> nn.Module:
        return super().frozen(_in_full(module), weights)


def _in_full(module: nn.Module) -> nn.Module:
    if isinstance(module, Backbone):
        module.read_first = MethodType(_read_first_of_all, module)
    return module


def _read_first_of_all(network: Backbone, tokens: Tensor, condition: Tensor, precise: bool = False) -> Tensor:
    assert not precise
    return network.run_blocks(tokens, condition)[:, 0]


class PublishedFlow(AdversarialFlow):
    """AFM without the survey of microbatches, and with as many calls of D in its turn as told."""

    def __init__(self, config: AFMConfig, mean_over_ranks: Reduce, device: torch.device, calls: Calls) -> None:
        super().__init__(config, mean_over_ranks, device)
        self._calls = calls

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        """Nothing."""

    def discriminator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        if self._calls == "four":
            nets = replace(nets, discriminator=_FourCalls(nets.discriminator, len(batch)))
        return super().discriminator_loss(nets, batch, draws, step)


@dataclass(frozen=True)
class _FourCalls:
    """Hands a batch of `num` real and `num` fake samples, and as many perturbed ones of either, to D in four calls."""

    discriminator: Discriminator
    num: int

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        perturbed = len(x) // 2 - self.num
        sizes = [self.num, self.num] + ([perturbed, perturbed] if perturbed else [])
        parts: Sequence[tuple[Tensor, ...]] = [of.split(sizes) for of in (x, t, y)]
        return torch.cat([self.discriminator(*part) for part in zip(*parts, strict=True)])
