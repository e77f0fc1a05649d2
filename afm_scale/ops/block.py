"""The fused pieces of a transformer block whose condition modulates it (adaLN, arXiv 2212.09748).

Inside of torch.compile both are torch's whatever was chosen: the compiler fuses them with what stands before and after
(a residual with the next LayerNorm, a LayerNorm with the casts around it), and could not look into another's kernel.
So they are where a derivative is taken in forward mode, which Triton's kernels have none of.

Legend: B batch, N tokens, d width. Everything is in the dtype of x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .choice import Chosen, in_use
from .tangents import carries_tangent

EPS = 1e-6  # of the LayerNorm

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # its sums are in float32: too little for float64
_TRITON_WIDTH = 4096  # a row is held in the registers of one program


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) * (1 + scale) + shift, with a LayerNorm over d without weights, eps 1e-6.

    Args:
        x: [B, N, d].
        shift, scale: [B, d], of each sample.

    Returns [B, N, d].
    """
    if not torch.compiler.is_compiling() and _by_triton(in_use().modulated_norm, x, shift, scale):
        from . import triton_kernels

        return triton_kernels.modulated_norm(x, shift, scale)
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y for x, y [B, N, d] and gate [B, d] -> [B, N, d]."""
    if not torch.compiler.is_compiling() and _by_triton(in_use().gated_residual, x, gate, y):
        from . import triton_kernels

        return triton_kernels.gated_residual(x, gate, y)
    return x + gate[:, None] * y


def _by_triton(chosen: Chosen, x: Tensor, *others: Tensor) -> bool:
    """Whether Triton was chosen and can take these tensors."""
    return (
        chosen.implementation == "triton"
        and x.device.type == in_use().device_type
        and x.dtype in _TRITON_DTYPES
        and all(other.dtype == x.dtype for other in others)
        and 0 < x.shape[-1] <= _TRITON_WIDTH
        and x.numel() > 0
        and not carries_tangent(x, *others)
    )
