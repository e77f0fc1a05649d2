"""Pretraining files of any size in the published layout, with random weights."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afm_scale.checkpoint.card import Card
from afm_scale.checkpoint.formats.format import Source
from afm_scale.checkpoint.names import AVERAGE, under
from afm_scale.core.random import tensor_generator
from afm_scale.core.sinusoids import sincos_positions
from afm_scale.core.typed import build
from afm_scale.core.types import Role
from afm_scale.run.config import AnyGenerator
from afm_scale.run.networks import build_described


def state_dict(
    *, width: int = 32, depth: int = 2, patch: int = 2, side: int = 8, channels: int = 4, classes: int = 5,
    learn_sigma: bool = True, null: bool = True, zero_sigma: bool = False, seed: int = 0,
) -> OrderedDict[str, Tensor]:
    """Of DiT or SiT, whose names and shapes are the same."""
    outputs = patch**2 * channels * (1 + learn_sigma)
    layers = {"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}
    for index in range(depth):
        layers |= {
            f"blocks.{index}.attn.qkv": (3 * width, width), f"blocks.{index}.attn.proj": (width, width),
            f"blocks.{index}.mlp.fc1": (4 * width, width), f"blocks.{index}.mlp.fc2": (width, 4 * width),
            f"blocks.{index}.adaLN_modulation.1": (6 * width, width),
        }
    layers |= {"final_layer.linear": (outputs, width), "final_layer.adaLN_modulation.1": (2 * width, width)}
    shapes = {"x_embedder.proj.weight": (width, channels, patch, patch), "x_embedder.proj.bias": (width,)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes["y_embedder.embedding_table.weight"] = (classes + null, width)
    weights = OrderedDict(pos_embed=sincos_positions(width, side // patch, side // patch))
    for name, shape in shapes.items():
        weights[name] = 0.1 * torch.randn(shape, generator=tensor_generator("published", seed, name))
    if learn_sigma and zero_sigma:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            weights[name].unflatten(0, (patch**2, 2 * channels))[:, channels:] = 0
    return weights


def training_checkpoint(model: str, average: dict[str, Tensor], own: dict[str, Tensor], **args: Any) -> dict[str, Any]:
    """As the published training programs save, with the moments of a real optimizer."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=1e-4, weight_decay=0)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    namespace = Namespace(model=model, image_size=256, global_seed=0, vae="ema", data_path="/data", **args)
    return {"model": own, "ema": average, "opt": optimizer.state_dict(), "args": namespace}


class Planted:
    """Code in a pickle: it would make the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def generator(source: Source, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network of a source's card with the average's weights."""
    card: Card = source.card()
    described = build(AnyGenerator, card.networks[Role.GENERATOR])
    network = build_described(Role.GENERATOR, described, card.shape, card.num_classes)
    network = network.to_empty(device="cpu")
    network.load_state_dict({name: lazy.read() for name, lazy in under(AVERAGE, source.tensors).items()})
    return network.to(dtype).eval()
