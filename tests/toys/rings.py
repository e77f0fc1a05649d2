"""A toy data set with its report: points on three circles about the origin, a class each."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from matplotlib.figure import Figure

from afm_scale.core.random import KeyedDraws, Positions
from afm_scale.core.types import Batch
from afm_scale.data.order import PositionedSource
from afm_scale.data.source import Encoding, Needs, SourceConfig
from afm_scale.evaluation.measurement import Findings, OfGenerator
from afm_scale.sampling.subject import Subject


@dataclass(frozen=True, kw_only=True)
class RingsConfig(SourceConfig):
    shape: ClassVar[tuple[int, int, int]] = (2, 1, 1)
    num_classes: ClassVar[int] = 3
    positioned: ClassVar[bool] = True
    kind: Literal["rings"] = "rings"


class Rings(PositionedSource):
    shape, num_classes = RingsConfig.shape, RingsConfig.num_classes

    def __init__(
        self, config: SourceConfig, *, seed: int, rank: int, world_size: int, device: torch.device | str
    ) -> None:
        super().__init__(global_batch=config.global_batch, rank=rank, world_size=world_size)
        self._seed, self._device = seed, torch.device(device)

    def at(self, positions: Positions) -> Batch:
        draws = KeyedDraws("rings", self._seed, positions=positions, device=self._device)
        angle, label = draws.uniform("angle", 0, 2 * math.pi), draws.uniform("label", 0, 3).long()
        points = torch.stack([angle.cos(), angle.sin()], dim=1) * (label + 1)[:, None]
        return Batch(points.float()[:, :, None, None], label)


@dataclass(frozen=True, kw_only=True)
class PackedRingsConfig(RingsConfig):
    """The same as latents of an autoencoder, in a file format that wants a package."""

    needs: ClassVar[Needs] = Needs("rings_that_are_nowhere", "rings")
    draws_latents: ClassVar[bool] = True
    kind: Literal["packed_rings"] = "packed_rings"

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        return "unrolled"

    @property
    def encoding(self) -> Encoding:
        return Encoding("ring-vae", 0.5)


@dataclass(frozen=True, kw_only=True)
class RingsQuality:
    distance: float  # mean distance of a sample to the circle of its class


@dataclass(frozen=True, kw_only=True)
class RingsReport(OfGenerator):
    kind: Literal["rings"] = "rings"
    num_samples: int = 30

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        x, labels = subject.generate(subject.stream(seed=0), self.num_samples)
        points = x.flatten(1).float()
        if subject.place.rank == 0:
            figure = Figure()
            figure.subplots().scatter(*points.T.numpy())
            picture.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(picture)
        return asdict(RingsQuality(distance=float((points.norm(dim=1) - labels - 1).abs().mean())))
