"""How much the samples of a regression count, by their own squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from ..core.ranges import Range


@dataclass(frozen=True, kw_only=True)
class AdaptiveWeight:
    """1 / (e + eps)^power without a gradient, e a sample's squared error (arXiv 2505.13447).

    eps means nothing without the reduction: 0.01 of a sum over the 4096 numbers of a latent is 2.4e-6 of their mean.
    At power 1 the weighted loss is nearly 1 whatever the error is; look at the term 'squared_error'.
    """

    power: Annotated[float, Range(0, 10)] = 1.0  # 0: all samples count the same
    eps: Annotated[float, Range(above=0, high=1e6)] = 0.01  # added to a sample's squared error, reduced as below
    reduction: Literal["sum", "mean"] = "sum"  # of the squared error over a sample's numbers, for eps and for the loss

    def error(self, difference: Tensor) -> Tensor:
        """The squared error of samples [B, C, H, W] -> [B]."""
        squares = difference.square().flatten(1)
        return squares.sum(1) if self.reduction == "sum" else squares.mean(1)

    def __call__(self, error: Tensor) -> Tensor:
        """[B] -> [B], without a gradient."""
        return (error.detach() + self.eps).pow(-self.power)


@dataclass(frozen=True, kw_only=True)
class RobustWeight:
    """w e with w = 1 / (scale sqrt(e / (1.01 scale^2) + 1)) without a gradient, e the mean squared error of a sample.

    The gradient of Barron's robust loss (arXiv 1701.03077) at alpha = 1, about sqrt(e): as TwinFlow was published,
    whose 0.01 keeps alpha = 2 finite.
    """

    scale: Annotated[float, Range(above=0, high=1e3)] = 1e-3  # an error far below its square counts as a plain square

    def __call__(self, error: Tensor) -> Tensor:
        """Mean squared errors [B] -> [B]; the gradient is that of w e for a constant w."""
        return error / (self.scale * (error.detach() / (1.01 * self.scale**2) + 1).sqrt())
