"""The mixture of AFM's 1-D experiment, endless, with what is known of it exactly: cdf, quantiles, optimal transport."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...core.random import KeyedDraws, Positions
from ...core.ranges import Range
from ...core.types import Batch
from ..order import PositionedSource
from ..source import SourceConfig


@dataclass(frozen=True, kw_only=True)
class GaussianMixture:
    """Equally likely normal distributions of one width. All methods take tensors of any shape, compute in float64."""

    modes: tuple[Annotated[float, Range(-1e6, 1e6)], ...] = (-1.5, -0.5, 0.5, 1.5)  # their means, as published
    sigma: Annotated[float, Range(above=0, high=1e6)] = 0.05  # standard deviation of each

    def __post_init__(self) -> None:
        if not self.modes:
            raise ConfigError("a mixture needs at least one mode, found none")

    def density(self, x: Tensor) -> Tensor:
        scaled = self._scaled(x)
        return torch.exp(-(scaled**2) / 2).mean(-1) / (self.sigma * math.sqrt(2 * math.pi))

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), accurate to the last digits in the lower tail too."""
        return _normal_cdf(self._scaled(x)).mean(-1)

    def quantile(self, p: Tensor) -> Tensor:
        """The least x with cdf(x) >= p, for 0 < p < 1, by bisection down to neighbouring float64 numbers."""
        p = p.to(torch.float64)
        # 40 sigma outside the modes the cdf is 0 or 1 to the last bit.
        low = torch.full_like(p, min(self.modes) - 40 * self.sigma)
        high = torch.full_like(p, max(self.modes) + 40 * self.sigma)
        for _ in range(70):
            middle = (low + high) / 2
            below = self.cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def transport_map(self, z: Tensor) -> Tensor:
        """quantile(Phi(z)): the monotone map of N(0, 1) to the mixture, optimal for every convex cost of x - z."""
        z = z.to(torch.float64)
        mirrored = GaussianMixture(modes=tuple(-mode for mode in self.modes), sigma=self.sigma)
        p = _normal_cdf(-z.abs())  # each half from its own tail, where the probabilities keep all their digits
        return torch.where(z <= 0, self.quantile(p), -mirrored.quantile(p))

    def nearest_mode(self, x: Tensor) -> Tensor:
        """int64 indices into `modes`."""
        return self._scaled(x).abs().argmin(-1)

    def _scaled(self, x: Tensor) -> Tensor:
        """(x - mode) / sigma, [..., number of modes]."""
        modes = torch.tensor(self.modes, dtype=torch.float64, device=x.device)
        return (x.to(torch.float64)[..., None] - modes) / self.sigma


def _normal_cdf(x: Tensor) -> Tensor:
    return torch.erfc(-x / math.sqrt(2)) / 2


@dataclass(frozen=True, kw_only=True)
class Mixture1DConfig(SourceConfig):
    """Samples [1, 1, 1] of one class."""

    positioned: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int, int]] = (1, 1, 1)
    num_classes: ClassVar[int] = 1
    kind: Literal["mixture1d"] = "mixture1d"
    distribution: GaussianMixture = GaussianMixture()


class Mixture1DSource(PositionedSource):
    """An endless stream: the sample at a position is drawn from the seed and the position, none is seen twice."""

    shape = Mixture1DConfig.shape
    num_classes = Mixture1DConfig.num_classes

    def __init__(
        self, config: Mixture1DConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        super().__init__(global_batch=config.global_batch, rank=rank, world_size=world_size)
        self._distribution = config.distribution
        self._seed = seed
        self._device = torch.device(device)

    def at(self, positions: Positions) -> Batch:
        draws = KeyedDraws("mixture1d", self._seed, positions=positions, device=self._device)
        modes = torch.tensor(self._distribution.modes, dtype=torch.float32, device=self._device)
        mode = modes[draws.uniform("mode", 0, len(modes)).long()]  # [B]
        x = mode[:, None, None, None] + self._distribution.sigma * draws.normal("offset", self.shape)
        return Batch(x, torch.zeros(positions.count, dtype=torch.int64, device=self._device))
