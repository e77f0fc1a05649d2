"""The types of number that a checkpoint's tensors may have, by the names that manifests use."""

from __future__ import annotations

import torch

DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128,
    )
}
