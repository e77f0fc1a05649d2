"""The small networks of the paper's 1-D experiment: every scalar input becomes sinusoids, then an MLP.

The scalars are the numbers of a sample (of any shape, but few), the times and, if `conditional`, the label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.ranges import Range
from .layers import DefaultLinear
from .network_config import NetworkConfig

_NUM_FEATURES = 64  # per scalar


@dataclass(frozen=True, kw_only=True)
class MLPConfig(NetworkConfig):
    """Four hidden layers of `width` (published: 1024). Both times are inputs always."""

    times: ClassVar[Literal["both"]] = "both"
    target_time: ClassVar[bool] = True
    negative_times: ClassVar[bool] = True
    no_class_setting: ClassVar[str] = "conditional"
    kind: Literal["mlp"] = "mlp"
    width: Annotated[int, Range(1, 1_048_576)]  # of each of the four hidden layers
    # of the scalars in the sinusoids: how fine a detail can be told apart (published: 100)
    scale: Annotated[float, Range(above=0, high=1e6)] = 100.0
    conditional: bool = False  # the label is an input, NO_CLASS being one more; otherwise it is ignored

    @property
    def takes_no_class(self) -> bool:
        return self.conditional

    def num_tokens(self, shape: tuple[int, int, int]) -> int:
        """It sees the sample at once."""
        return 0


@dataclass(frozen=True, kw_only=True)
class MLPClassifierConfig(NetworkConfig):
    """Four hidden layers of `width`; `weights` as of a `ClassifierConfig`."""

    kind: Literal["mlp"] = "mlp"
    width: Annotated[int, Range(1, 1_048_576)]  # of each of the four hidden layers
    scale: Annotated[float, Range(above=0, high=1e6)] = 100.0  # of the scalars in the sinusoids
    weights: Path | None = None  # of the one that guides: a file, or a run's folder; null where it is trained


def _features(value: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """[B] -> [B, 64]: sines, then cosines, of scale value at 32 frequencies from 1 to 1/10000."""
    index = torch.arange(_NUM_FEATURES // 2, dtype=torch.float32, device=value.device)
    frequencies = torch.exp(-math.log(10_000) * index / (_NUM_FEATURES // 2 - 1))
    angles = (scale * value.to(dtype))[:, None] * frequencies.to(dtype)
    return torch.cat((torch.sin(angles), torch.cos(angles)), dim=-1)


class _MLP(nn.Module):
    repetitions = 1
    passes = ()  # without blocks: a plan takes so small a network as one piece (core/network.py)

    def __init__(self, config: MLPConfig | MLPClassifierConfig, num_inputs: int, num_out: int) -> None:
        super().__init__()
        self.scale, width = config.scale, config.width
        layers: list[nn.Module] = [DefaultLinear(num_inputs * _NUM_FEATURES, width), nn.SiLU()]
        for _ in range(3):
            layers += [DefaultLinear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, DefaultLinear(width, num_out))

    def shardable_blocks(self) -> list[nn.Module]:
        return []

    def large_linears(self) -> list[nn.Linear]:
        return []

    def compute_blocks_in(self, dtype: torch.dtype) -> None:
        """Does nothing: there are no blocks."""

    def embed(self, x: Tensor, *scalars: Tensor) -> Tensor:
        """Samples [B, C, H, W] and values [B] each -> the input of the first layer, [B, 64 inputs]."""
        dtype, values = self.layers[0].weight.dtype, (*x.flatten(1).unbind(1), *scalars)
        return torch.cat([_features(value, self.scale, dtype) for value in values], dim=-1)


class MLPGenerator(_MLP):
    """G(x_s, s, t, y) -> [B, C, H, W]."""

    def __init__(self, config: MLPConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, math.prod(shape) + 2 + config.conditional, math.prod(shape))
        self.conditional = config.conditional

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        inputs = self.embed(x, s, t, *[y] * self.conditional)
        return self.layers(inputs).view_as(x).clone()  # no view as output: see DiTDiscriminator


class MLPDiscriminator(_MLP):
    """D(x_t, t, y) -> [B]."""

    def __init__(self, config: MLPConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, math.prod(shape) + 1 + config.conditional, 1)
        self.conditional = config.conditional

    def forward(self, x: Tensor, t: Tensor, y: Tensor, precise: bool = False) -> Tensor:
        """-> [B]; it is always precise: there are no blocks that a plan could lower."""
        return self.layers(self.embed(x, t, *[y] * self.conditional)).squeeze(-1).clone()


class MLPClassifier(_MLP):
    """C(x_t, t) -> class logits [B, num_classes]."""

    def __init__(self, config: MLPClassifierConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, math.prod(shape) + 1, num_classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.logits(self.features(x, t))

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """What the last linear layer sees, [B, width]."""
        return self.layers[:-1](self.embed(x, t))

    def logits(self, features: Tensor) -> Tensor:
        """[B, width] -> [B, num_classes]."""
        return self.layers[-1](features)
