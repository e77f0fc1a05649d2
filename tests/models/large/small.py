"""A Qwen-Image transformer of a few ten thousand weights, and what it is asked: `from tests.models.large.small import`.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from afm_scale.core.conditions import Conditions
from afm_scale.models.large.config import DiffusersConfig
from afm_scale.models.layers import initial_weights
from afm_scale.models.table import GENERATORS

CLASS = "QwenImageTransformer2DModel"
SETTINGS = {
    "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 12, "in_channels": 16,
    "out_channels": 4, "axes_dims_rope": [4, 6, 6],
}
SHAPE = (4, 8, 8)


def described(**changes: Any) -> DiffusersConfig:
    return DiffusersConfig(**{"class_name": CLASS, "config": SETTINGS} | changes)


def on_meta(config: DiffusersConfig) -> nn.Module:
    with torch.device("meta"):
        return GENERATORS[DiffusersConfig](config, SHAPE, 3)


def network(*, moved: float = 0.05, **changes: Any) -> nn.Module:
    """With its starting weights, moved off zero where they begin there."""
    built = on_meta(described(**changes)).to_empty(device="cpu")
    weights, random = built.state_dict(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in initial_weights(built, 0, "generator"):
            weights[name].copy_(value)
        for parameter in built.parameters():
            parameter.add_(moved * torch.randn(parameter.shape, generator=random))
    return built


def plain(built: nn.Module) -> nn.Module:
    """The class of diffusers itself, with the weights of ours."""
    transformer = getattr(diffusers, CLASS)(**SETTINGS)
    transformer.load_state_dict(built.transformer.state_dict())
    return transformer


def samples(count: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Conditions]:
    random = torch.Generator().manual_seed(2)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3], [1]])[:count]
    embeddings = torch.randn(count, 5, 12, generator=random, dtype=dtype) * mask[..., None]
    x = torch.randn(count, *SHAPE, generator=random, dtype=dtype)
    return x, Conditions(embeddings, mask, torch.zeros(count, 0, dtype=dtype))
