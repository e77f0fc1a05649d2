"""The small networks of the paper's 1-D experiment: every scalar input becomes sinusoids, then an MLP.

Samples are [B, 1, 1, 1]; labels are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .layers import DefaultLinear

_NUM_FEATURES = 64  # per scalar


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Four hidden layers of `width` (published: 1024)."""

    kind: Literal["mlp"] = "mlp"
    width: int


def _features(value: Tensor, dtype: torch.dtype) -> Tensor:
    """[B] -> [B, 64]: sines, then cosines, of 100 value at 32 frequencies from 1 to 1/10000."""
    index = torch.arange(_NUM_FEATURES // 2, dtype=torch.float32, device=value.device)
    frequencies = torch.exp(-math.log(10_000) * index / (_NUM_FEATURES // 2 - 1))
    angles = (100 * value.to(dtype))[:, None] * frequencies.to(dtype)
    return torch.cat((torch.sin(angles), torch.cos(angles)), dim=-1)


class _MLP(nn.Module):
    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [DefaultLinear(num_inputs * _NUM_FEATURES, width), nn.SiLU()]
        for _ in range(3):
            layers += [DefaultLinear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, DefaultLinear(width, 1))

    def shardable_blocks(self) -> list[nn.Module]:
        return []

    def evaluate(self, *scalars: Tensor) -> Tensor:
        dtype = self.layers[0].weight.dtype
        return self.layers(torch.cat([_features(scalar, dtype) for scalar in scalars], dim=-1)).squeeze(-1)


class MLPGenerator(_MLP):
    """G(x_s, s, t, y) -> [B, 1, 1, 1]."""

    def __init__(self, config: MLPConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(3, config.width)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.evaluate(x.flatten(), s, t).view_as(x).clone()  # no view as output: see DiTDiscriminator


class MLPDiscriminator(_MLP):
    """D(x_t, t, y) -> [B]."""

    def __init__(self, config: MLPConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(2, config.width)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.evaluate(x.flatten(), t).clone()
