"""The large linear layers of blocks in fp8: inputs and weights in e4m3, gradients in e5m2, sums in float32.

Scales are those of whole tensors, found anew at every use (torchao's recipe "tensorwise"). Weights rest, are gathered
and have their gradients reduced as under bf16, and keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torchao.float8 import Float8LinearConfig
from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args
from torchao.float8.float8_training_tensor import LinearMMConfig


def compute_in_fp8(linears: Iterable[nn.Linear], *, emulate: bool = False) -> None:
    """Replaces their `forward` on the instance; `emulate` rounds to fp8 and multiplies in float32, on any device.

    A discriminator's tokens are one more than a power of two, which no sum over all of them divides by 16: torchao pads
    them.
    """
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    with torch.device("meta"):
        products = Float8Linear(1, 1, config=config).linear_mm_config
    for linear in linears:
        linear.forward = partial(_forward, linear, linear.forward, products, config)


def _forward(
    linear: nn.Linear, plain: Callable[[Tensor], Tensor], products: LinearMMConfig, config: Float8LinearConfig,
    x: Tensor,
) -> Tensor:
    if x.dtype != torch.bfloat16:  # the discriminator's penalties, in float32
        return plain(x)
    out = matmul_with_hp_or_float8_args.apply(x, linear.weight.to(x.dtype).t(), products, config)
    return out if linear.bias is None else out + linear.bias.to(x.dtype)
