"""One step of AdamW over many tensors, which needs no first moment where beta1 = 0.

The first moment is then the gradient: m <- 0 m + 1 g. torch's and apex's kernels are given the gradients in its place,
and write them back unchanged, so that the arithmetic is that of the same kernel with a first moment, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .choice import in_use

Kernel = Literal["foreach", "fused", "apex"]
"""foreach: torch's, one launch for each operation. fused: torch's, one for all. apex: apex's, one for all."""


def kernel_for(parameters: Sequence[Tensor]) -> Kernel:
    """foreach on the CPU, where the order of its roundings is that of torch.optim.AdamW; fused or apex on a GPU."""
    if not parameters or not all(parameter.is_cuda for parameter in parameters):
        return "foreach"
    by_apex = in_use().adamw.implementation == "apex"
    takes = all(parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in parameters)
    return "apex" if by_apex and takes else "fused"


def new_step(parameter: Tensor, kernel: Kernel) -> Tensor:
    """The count of a parameter's steps, [] float32, where the kernel reads it: torch's fused one does on the device."""
    return torch.zeros((), dtype=torch.float32, device=parameter.device if kernel == "fused" else "cpu")


@torch.no_grad()
def adamw_(
    kernel: Kernel, parameters: list[Tensor], gradients: list[Tensor], exp_avgs: list[Tensor] | None,
    exp_avg_sqs: list[Tensor], steps: list[Tensor], *,
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:
    """One step in place, decoupled weight decay and bias correction included; adds 1 to every count in `steps`.

    Args:
        exp_avgs: first moments, of the parameters' shapes; None if and only if betas[0] is 0.
        exp_avg_sqs: second moments.
    """
    assert (exp_avgs is None) == (betas[0] == 0), betas
    firsts = gradients if exp_avgs is None else exp_avgs
    if kernel == "apex":
        from . import apex_kernels

        torch._foreach_add_(steps, 1)
        counts = [int(step) for step in steps]
        for count in sorted(set(counts)):  # apex takes one for a launch; it differs where there was no gradient
            chosen = [index for index, other in enumerate(counts) if other == count]
            lists = [[tensors[i] for i in chosen] for tensors in (parameters, gradients, firsts, exp_avg_sqs)]
            apex_kernels.adamw_(*lists, count, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        return
    adamw(
        parameters, gradients, firsts, exp_avg_sqs, [], steps, foreach=kernel == "foreach", fused=kernel == "fused",
        amsgrad=False, beta1=betas[0], beta2=betas[1], lr=lr, weight_decay=weight_decay, eps=eps, maximize=False,
    )
