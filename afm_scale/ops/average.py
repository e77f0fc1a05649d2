"""Moving many averages at once.

torch's own has one launch for many tensors and reads and writes each number once, which is all that there is to gain:
there is none for Triton, whose launch would need every tensor's address in a table of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .choice import in_use


@torch.no_grad()
def average_(averages: Sequence[Tensor], weights: Sequence[Tensor], weight: float) -> None:
    """averages <- averages + weight (weights - averages), in place, for plain tensors of the same shapes.

    apex's arithmetic differs from torch's in the last bits.
    """
    if in_use().average.implementation == "apex" and all(_apex_takes(tensor) for tensor in (*averages, *weights)):
        from . import apex_kernels

        apex_kernels.average_(averages, weights, weight)
    else:
        torch._foreach_lerp_(list(averages), list(weights), weight)


def _apex_takes(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype == torch.float32 and tensor.is_contiguous()
