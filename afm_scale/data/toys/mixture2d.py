"""Classes as normal distributions in the plane, endless, with the posterior of their noised samples known exactly."""

from __future__ import annotations

import itertools
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

_LATTICE = tuple(itertools.product((-1.0, 0.0, 1.0), repeat=2))


@dataclass(frozen=True, kw_only=True)
class ClassMixture:
    """Equally likely classes, each normally distributed around its centre with the same sigma along both axes."""

    centres: tuple[Annotated[tuple[float, float], Range(-1e6, 1e6)], ...] = _LATTICE  # of each class, in order
    sigma: Annotated[float, Range(above=0, high=1e6)] = 0.12  # standard deviation along either axis

    def __post_init__(self) -> None:
        if not self.centres:
            raise ConfigError("a mixture needs at least one centre, found none")

    def log_posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t, t) [B, K] of x_t = (1 - t) x + t z, all classes being equally likely, in float64.

        Args:
            x: [B, 2] points at times t [B]; t = 0 is data.
        """
        t = t.to(torch.float64)[:, None]
        variance = ((1 - t) * self.sigma) ** 2 + t**2  # of x_t within a class, along each axis
        distance = (x.to(torch.float64)[:, None] - (1 - t[:, None]) * self.places(x.device)).square().sum(-1)
        return torch.log_softmax(-distance / (2 * variance), dim=1)

    def places(self, device: torch.device | str) -> Tensor:
        """The centres, [K, 2] float64."""
        return torch.tensor(self.centres, dtype=torch.float64, device=device)


@dataclass(frozen=True, kw_only=True)
class Mixture2DConfig(SourceConfig):
    """Samples [2, 1, 1], labelled with the class they were drawn from."""

    positioned: ClassVar[bool] = True
    shape: ClassVar[tuple[int, int, int]] = (2, 1, 1)
    kind: Literal["mixture2d"] = "mixture2d"
    distribution: ClassMixture = ClassMixture()

    @property
    def num_classes(self) -> int:
        return len(self.distribution.centres)


class Mixture2DSource(PositionedSource):
    """An endless stream: the sample at a position is drawn from the seed and the position, none is seen twice."""

    shape = Mixture2DConfig.shape

    def __init__(
        self, config: Mixture2DConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        super().__init__(global_batch=config.global_batch, rank=rank, world_size=world_size)
        self.num_classes = config.num_classes
        self._distribution = config.distribution
        self._seed = seed
        self._device = torch.device(device)

    def at(self, positions: Positions) -> Batch:
        draws = KeyedDraws("mixture2d", self._seed, positions=positions, device=self._device)
        y = draws.uniform("class", 0, self.num_classes).long().clamp(max=self.num_classes - 1)  # [B]
        centres = self._distribution.places(self._device).float()
        return Batch(centres[y][:, :, None, None] + self._distribution.sigma * draws.normal("offset", self.shape), y)
