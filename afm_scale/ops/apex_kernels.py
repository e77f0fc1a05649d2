"""Launches of NVIDIA apex's kernels over many tensors. Written against apex's sources; not run yet.

apex has to be built with its CUDA extensions (--cpp_ext --cuda_ext). The package of the name apex that package indexes
offer is another one; importing this module then fails, and `choice.probe` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import apex  # noqa: F401  # loads the libraries that the kernels need
import torch
from torch import Tensor

# Its kernels became functions of a module of apex in 2026 and were a module of their own before, with the same
# signatures: (chunk size, flag that is set where a number is not finite, lists of tensors, numbers).
_KERNELS = import_module("apex._extensions.amp_C" if find_spec("apex._extensions") else "amp_C")
_CHUNK = 2048 * 32  # numbers of one block of threads, as apex's own optimizers take
_ADAMW, _BIAS_CORRECTION, _CHECK_BOTH = 1, 1, -1


def adamw_(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor], step: int, *,
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:
    """One step of AdamW, number `step` from 1, in place. All tensors are float32, contiguous and on one GPU."""
    lists = _without_empty(gradients, parameters, exp_avgs, exp_avg_sqs)
    if lists[0]:
        _KERNELS.multi_tensor_adam(
            _CHUNK, _flag(lists[0][0]), lists, lr, *betas, eps, step, _ADAMW, _BIAS_CORRECTION, weight_decay
        )


def average_(averages: Sequence[Tensor], weights: Sequence[Tensor], weight: float) -> None:
    """averages <- (1 - weight) averages + weight weights, in place. All tensors are float32 and on one GPU."""
    lists = _without_empty(averages, weights, averages)
    if lists[0]:
        _KERNELS.multi_tensor_axpby(_CHUNK, _flag(lists[0][0]), lists, 1 - weight, weight, _CHECK_BOTH)


def _without_empty(*lists: Sequence[Tensor]) -> list[list[Tensor]]:
    """apex launches when it comes to the last chunk of the last tensor: were that one empty, it would never launch."""
    return [[tensor for tensor in tensors if tensor.numel()] for tensors in lists]


def _flag(tensor: Tensor) -> Tensor:
    """Nobody reads it: numbers that are not finite are let through, as torch lets them."""
    return torch.zeros(1, dtype=torch.int32, device=tensor.device)
