"""Attention, also where a derivative in forward mode goes through it, for which torch's fast kernels have none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .tangents import carries_tangent


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q [B, heads, M, d] and k, v [B, heads, N, d] -> [B, heads, M, d]."""
    if not torch.compiler.is_compiling() and carries_tangent(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)
