"""The gradient normalisation operator of AFM (paper Eq. 23, Algorithm 3).

phi is the identity forward; backward it scales the gradient g that D sends to its input:

    q = numel(g) sum(g^2)                       mean over ranks and microbatches
    S <- beta S + (1 - beta) q                  once per generator update
    g <- g target / (sqrt(S) + eps)

With a batch mean in the loss each g carries 1 / B, so q = n mean_i |B g_i|^2 whatever B is, and the scaled gradient of
one sample has norm about 1 / sqrt(n), n = C H W: the transport weight means the same for every size.

Where this differs from the published operator: D's gradient is computed first, explicitly, and then handed to the
backward of G (`first_order`). The numbers are the same, no collective hides inside a backward, and with several
microbatches S can know the whole batch before any of them goes through G: the published form rescales each
microbatch by itself, so its adversarial weight grows with their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..core.ranges import Range
from ..core.types import Reduce


@dataclass(frozen=True, kw_only=True)
class GradientScaleConfig:
    decay: Annotated[float, Range(0, below=1)] = 0.9  # beta: Adam's beta2 as published
    eps: Annotated[float, Range(0, 1)] = 1e-8  # added to the root of the mean square
    target: Annotated[float, Range(above=0, high=1e6)] = 1.0  # norm that the adversarial gradient is given


class GradientScale:
    """S and the arithmetic around it. `square_avg` is float64 [] and belongs in every checkpoint."""

    def __init__(self, config: GradientScaleConfig, mean_over_ranks: Reduce, device: torch.device) -> None:
        self.square_avg = torch.zeros((), dtype=torch.float64, device=device)
        self._config = config
        self._mean_over_ranks = mean_over_ranks
        self._observed: list[Tensor] = []

    def observe(self, q: Tensor) -> None:
        """Counts the `scaled_square` of one microbatch's gradient towards the next update of S."""
        self._observed.append(q)

    def __call__(self, gradient: Tensor) -> Tensor:
        """The scaled gradient. The first call after `observe` updates S: one scalar collective per update."""
        if self._observed:
            q = self._mean_over_ranks(torch.stack(self._observed).mean())
            self.square_avg.lerp_(q, 1 - self._config.decay)
            self._observed.clear()
        scale = self._config.target / (self.square_avg.sqrt() + self._config.eps)
        return gradient * scale.to(gradient.dtype)


def scaled_square(gradient: Tensor) -> Tensor:
    """q of a microbatch's gradient [B, C, H, W], as one float64 []: n times the mean square of a sample's own."""
    exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient.numel() * exact.square().sum().double()


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None


def first_order(x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar that equals `value` [] and whose gradient with respect to x is `gradient` [x.shape]."""
    return _FirstOrder.apply(x, value, gradient)
