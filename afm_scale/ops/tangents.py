"""Derivatives in forward mode (flow/derivative.py) meet pieces that have none: how these see one coming."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def carries_tangent(*tensors: Tensor) -> bool:
    """Whether a derivative is being taken in forward mode along one of them. Not to be asked inside torch.compile."""
    return any(unpack_dual(tensor).tangent is not None for tensor in tensors)
