"""The fixed sinusoids by which transformers are told positions and times: networks compute, formats convert them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

TimeEmbedding = Literal["dit", "sit", "diffusers", "plain"]
"""Whose sinusoids a network is told its times by; weights of the one mean nothing to another.

dit: of 1000 t, as in the published DiT and AFM. sit: of 1 - t, the published SiT's time. diffusers: of 1000 t, with its
frequencies, which reach the lowest one where the others stop before it. plain: of t itself, as in the published
MeanFlow: the derivative by a time that is multiplied by 1000 is a thousand times as large.
"""
NUM_FREQUENCIES = 128
_MAX_PERIOD = 10_000
_OF: dict[TimeEmbedding, tuple[float, float, int]] = {  # a + b t is embedded; steps from 1 to the lowest
    "dit": (0, 1000, NUM_FREQUENCIES), "sit": (1, -1, NUM_FREQUENCIES), "diffusers": (0, 1000, NUM_FREQUENCIES - 1),
    "plain": (0, 1, NUM_FREQUENCIES),
}


def time_sinusoids(embedding: TimeEmbedding, t: Tensor) -> Tensor:
    """Times t [B] in [0, 1] -> [B, 256] float32: cosines, then sines. Plain ones of float64 times are float64."""
    start, factor, steps = _OF[embedding]
    index = torch.arange(NUM_FREQUENCIES, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(_MAX_PERIOD) * index / steps)
    at = t if embedding == "plain" and t.dtype == torch.float64 else t.float()
    angles = (start + factor * at)[:, None] * frequencies  # [B, 128]
    return torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1)


def sincos_positions(hidden_size: int, height: int, width: int) -> Tensor:
    """Fixed 2-D positional embedding, [1, height * width, d]: half of the width codes the column, half the row."""

    def one_axis(position: Tensor) -> Tensor:
        quarter = hidden_size // 4
        frequencies = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = position.flatten()[:, None] * frequencies
        return torch.cat((torch.sin(angles), torch.cos(angles)), dim=1)

    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return torch.cat((one_axis(columns), one_axis(rows)), dim=1)[None].float()
