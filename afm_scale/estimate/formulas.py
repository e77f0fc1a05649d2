"""Operations of kernels by their shapes: torch's formulas, and what they leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry

_ATEN = torch.ops.aten
_AS_ON_A_GPU = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _ATEN._scaled_dot_product_flash_attention_backward,
}

Formula = Callable[..., int]
"""Of an operation's arguments and, as `out_val`, its result."""


def formula_of(func: Any) -> Formula | None:
    """Two operations to a multiplication and addition; None for what multiplies no matrices.

    The CPU's attention has torch's formula of a GPU's. torch's own for the backward of a convolution takes its groups
    for one, and counts a depthwise one times its channels.
    """
    packet = func._overloadpacket
    if packet is _ATEN.convolution_backward:
        return _convolution_backward
    return flop_registry.get(_AS_ON_A_GPU.get(packet, packet))


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, output_mask: list[bool], *, out_val: Any = None,
) -> int:
    """Each gradient, of the input and of the weight, multiplies as often as the forward did."""
    forward = conv_flop_count(list(x.shape), list(weight.shape), list(gradient.shape), transposed)
    return forward * sum(output_mask[:2])
