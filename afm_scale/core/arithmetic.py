"""In which arithmetic float32 is multiplied. Nobody else touches torch's switches of TF32.

Torch has two of them for each kind of product, an older and a newer one, which have to agree: while they do not,
whatever asks the older one fails (torch.compile's search for the fastest kernel does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "tf32", "bf16", "fp8", "fp64"]
"""What a run computes in; `parallel.config.ParallelConfig` says what each means."""

_BLOCKS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp8": torch.bfloat16}

_PRODUCTS, _CONVOLUTIONS = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # the newer switches


def block_dtype(precision: Precision) -> torch.dtype | None:
    """What the blocks of a network compute in where that is lower than the parameters' dtype, else None."""
    return _BLOCKS.get(precision)


def allow_tf32(precision: Precision) -> None:
    """Sets which products of float32 matrices may take TF32 on a GPU, in this process."""
    _set_products(precision not in ("fp32", "fp64"))
    _set_convolutions(precision == "tf32")


@contextmanager
def arithmetic_of(precision: Precision) -> Iterator[None]:
    """`allow_tf32` for the block alone."""
    with _switches_kept():
        allow_tf32(precision)
        yield


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """No graph, no autocast and no TF32 in the block, whatever precision the run around it trains with.

    TF32 keeps 10 bits of what is multiplied: enough to train with, not for figures that are compared in their third
    digit. NVIDIA's file computes by a matrix product even where to resample an image, which would then be off by up
    to 1/16 of a pixel at 256 x 256.
    """
    with _switches_kept(), torch.no_grad(), torch.autocast(device.type, enabled=False):
        _set_products(False)
        _set_convolutions(False)
        yield


def without_tf32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function, whose products of matrices take no TF32. Its backward may."""

    @wraps(forward)
    def in_float32(x: Tensor) -> Tensor:
        before = _PRODUCTS.fp32_precision == "tf32"
        _set_products(False)
        try:
            return forward(x)
        finally:
            _set_products(before)

    return in_float32


@contextmanager
def _switches_kept() -> Iterator[None]:
    """Whatever the block sets, the switches stand as before it afterwards."""
    products, convolutions = (kernel.fp32_precision == "tf32" for kernel in (_PRODUCTS, _CONVOLUTIONS))
    try:
        yield
    finally:
        _set_products(products)
        _set_convolutions(convolutions)


def _set_products(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")  # the older switch, which sets the newer too


def _set_convolutions(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    _CONVOLUTIONS.fp32_precision = "tf32" if allowed else "ieee"
