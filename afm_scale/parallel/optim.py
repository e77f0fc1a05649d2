"""The optimizer of a player: AdamW as published, its state allocated at once so that it can be listed and loaded.

It lives beside the plans because they build it: over shards, or inside an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..core.ranges import Range
from ..core.schedules import Schedule
from ..ops.adamw import adamw_, kernel_for, new_step


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW on all parameters without exclusions (AFM paper, Table 10)."""

    learning_rate: Annotated[Schedule, Range(0)]  # of each update
    # decay of the two moments; 0: without the first
    betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.0, 0.9)
    eps: Annotated[float, Range(0, 1)] = 1e-8  # added to the root of the second moment
    weight_decay: Annotated[float, Range(0, 100)] = 0.01  # decoupled: times the learning rate
    # L2 norm over all of the player's parameters; 50 hardly ever clips
    max_grad_norm: Annotated[float, Range(above=0)] = 50.0
    # k: steps are by g + k (g - g of the update before), which damps the rotation of players who move at once; 0: by g
    optimism: Annotated[float, Range(0, 10)] = 0.0


class AdamW(torch.optim.Optimizer):
    """AdamW without a first moment where beta1 = 0, by the kernel that `ops` chose; on the CPU as torch.optim.AdamW.

    Its state of a parameter is `step` [], `exp_avg_sq` and, where beta1 > 0, `exp_avg`: with beta1 = 0 that half of the
    memory is not needed, since the first moment is the gradient. With optimism (arXiv 1711.00141) there is `past_grad`,
    0 before the first step, and all else is of the gradient with that term.
    """

    is_held = False  # `step` does nothing then: for who cannot keep an engine from calling it

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        defaults = {
            "lr": config.learning_rate(0), "betas": config.betas, "eps": config.eps,
            "weight_decay": config.weight_decay, "optimism": config.optimism,
        }
        super().__init__(parameters, defaults)
        self._kernel = kernel_for([parameter for group in self.param_groups for parameter in group["params"]])
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._new_state(parameter, group)

    def _new_state(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Complete before the first step, so that saving and loading never meet an empty one."""
        kept = {"exp_avg": group["betas"][0] != 0, "exp_avg_sq": True, "past_grad": group["optimism"] != 0}
        return {
            "step": new_step(parameter, self._kernel),
            **{name: torch.zeros_like(parameter, requires_grad=False) for name, is_kept in kept.items() if is_kept},
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of the parameters that have a gradient."""
        assert closure is None
        if self.is_held:
            return
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.state[parameter] for parameter in moving]
            gradients = [parameter.grad for parameter in moving]
            if group["optimism"] and gradients:
                past = [state["past_grad"] for state in states]
                ahead = torch._foreach_lerp(past, gradients, 1 + group["optimism"])
                torch._foreach_copy_(past, gradients)
                gradients = list(ahead)
            adamw_(
                self._kernel, moving, gradients,
                [state["exp_avg"] for state in states] if group["betas"][0] != 0 else None,
                [state["exp_avg_sq"] for state in states], [state["step"] for state in states],
                lr=group["lr"], betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"],
            )


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> AdamW:
    return AdamW(parameters, config)


@contextmanager
def asking(optimizer: AdamW, moves: Callable[[], bool]) -> Iterator[list[bool]]:
    """In the block `moves` is asked once, before the optimizer's first step; if it says no, none of them does anything.

    Yields what it has said, if it was asked.
    """
    said: list[bool] = []

    def ask(*_: Any) -> None:
        if not said:
            said.append(moves())
        optimizer.is_held = not said[0]

    hook = optimizer.register_step_pre_hook(ask)
    try:
        yield said
    finally:
        hook.remove()
        optimizer.is_held = False
