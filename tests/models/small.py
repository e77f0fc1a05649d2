"""Small networks with all their weights, some of them away from the start where gates and heads are zero."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from afm_scale.core.random import tensor_generator
from afm_scale.models.layers import initial_weights

SHAPE = (3, 4, 6)
NUM_CLASSES = 5
SIZE = {"patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 4}

Network = TypeVar("Network", bound=nn.Module)


def at_start(network: Network, seed: int = 0) -> Network:
    """In float64, with the weights a run starts from."""
    network.load_state_dict(dict(initial_weights(network, seed, "generator")))
    return network.double()


def awake(network: Network) -> Network:
    """In float64, every parameter moved away from its start, so that every gate is open and every input matters."""
    network = at_start(network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=tensor_generator("awake", name))
    return network


def inputs(count: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, s, t, y): float64 samples, float32 times, int64 labels."""
    generator = tensor_generator("inputs")
    x = torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator)
    s = torch.rand(count, generator=generator)
    return x, s, s * torch.rand(count, generator=generator), torch.arange(count) % NUM_CLASSES
