"""A DiT that was trained to predict noise, as the velocity field on the straight path that it stands for.

The published DiT (arXiv 2212.09748) is told the step k = 0 ... 999 of a diffusion with linear betas (arXiv 2006.11239):

    a_k^2 = prod_{i <= k} (1 - beta_i),   b_k^2 = 1 - a_k^2,   u_k = a_k x + b_k z,   it predicts z from (u_k, k)

Both paths are mixtures of x and z. Where the ratio of the shares is the same, t_k = b_k / (a_k + b_k), they differ by a
known factor, u_k = x_t / sqrt(t^2 + (1-t)^2), and with x = (x_t - t z) / (1-t) the velocity of the straight path is

    v(x_t, t) = z - x = (z(u_k, k) - x_t) / (1 - t)

That is exact at the 1000 times t_k, from 0.0099 to 0.9937. Between two of them k is interpolated; before the first it
stays 0; after the last, where the division would end at zero by zero, the field stays what it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .generator import DiTGenerator, GeneratorConfig

_STEPS = 1000
_BETAS = (1e-4, 0.02)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(GeneratorConfig):
    """A diffusion transformer with the published DiT's weights, which predicts noise; its output is the velocity."""

    kind: Literal["dit_diffusion"] = "dit_diffusion"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times == "none":
            raise ConfigError("a network that predicts noise must be told how much there is; set times to 'source'")
        if self.times == "gated":  # its source is a step of a diffusion, its target a time: no interval
            raise ConfigError("a network that predicts noise has no interval to be told; set times to 'source'")


def times_of_steps(device: torch.device | None = None) -> Tensor:
    """t_k of the steps 0 ... 999, [1000] float64, rising."""
    squares = torch.cumprod(1 - torch.linspace(*_BETAS, _STEPS, dtype=torch.float64, device=device), dim=0)
    data, noise = squares.sqrt(), (1 - squares).sqrt()
    return noise / (data + noise)


def steps_of_times(t: Tensor, times: Tensor) -> Tensor:
    """k at times t [B], between 0 and 999, interpolated; [B] float64."""
    t = t.to(times.dtype)
    above = torch.searchsorted(times, t).clamp(1, _STEPS - 1)
    low, high = times[above - 1], times[above]
    return above - 1 + ((t - low) / (high - low)).clamp(0, 1)


class DiffusionGenerator(DiTGenerator):
    """The velocity v(x_s, s, t, y) -> [B, C, H, W] of a network that predicts noise."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As DiTGenerator's."""
        times = times_of_steps(x.device)
        s = s.to(times.dtype).clamp(max=times[-1])
        share = s.to(x.dtype).view(-1, *[1] * (x.ndim - 1))  # of noise
        on_their_path = x / (share.square() + (1 - share).square()).sqrt()
        step = (steps_of_times(s, times) / _STEPS).float()
        return (super().forward(on_their_path, step, t, y) - x) / (1 - share)
