"""Whether weights from a file are those of a network: by their names, their shapes, their types and their values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def first_misfit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor] | None) -> str | None:
    """The first name at which weights cannot be a network's, and why; None if all can.

    Names and shapes must be those of `wanted`, the network's state dict, which may be on the meta device (None: any).
    Values must be finite floats of 16 bits or more, or whole numbers where the network has whole numbers. A copy into
    the network would turn anything else, whole or complex numbers for instance, into floats without a word.
    """
    for name in sorted(given if wanted is None else given.keys() | wanted.keys()):
        found = given.get(name)
        needed = found if wanted is None else wanted.get(name)
        if found is None or needed is None or found.shape != needed.shape:
            return f"{name} is {_shape(found, 'missing')} there, {_shape(needed, 'not wanted')} here"
        if found.layout is not torch.strided or found.is_quantized or found.is_meta:
            return f"{name} is no plain tensor"
        whole = not needed.is_floating_point() and wanted is not None
        if whole and found.dtype != needed.dtype:
            return f"{name} is of {_dtype(found)}, wanted {_dtype(needed)}"
        if not whole and found.dtype not in FLOATS:
            return f"{name} is of {_dtype(found)}, wanted floats of 16 to 64 bits"
        if not whole and not bool(found.isfinite().all()):
            return f"{name} holds values that are not finite"
    return None


def _shape(tensor: Tensor | None, otherwise: str) -> str:
    return otherwise if tensor is None else str(tuple(tensor.shape))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
