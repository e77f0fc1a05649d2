"""The kernels of AdamW: the same numbers with the gradients in the first moment's place, and by torch's fused one."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from afm_scale.ops.adamw import Kernel, adamw_, kernel_for, new_step

SHAPES = ((40, 7), (9,), (0, 3), (1,))
SETTINGS = {"lr": 3e-3, "eps": 1e-8, "weight_decay": 0.02}


class Trained(NamedTuple):
    parameters: list[Tensor]
    exp_avgs: list[Tensor] | None
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]


def drawn(dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in SHAPES]


def gradients_of(count: int, dtype: torch.dtype) -> list[Tensor]:
    return [gradient * 10.0 ** (-count) for gradient in drawn(dtype, 1 + count)]


def trained(kernel: Kernel, dtype: torch.dtype, *, beta1: float, with_first_moment: bool) -> Trained:
    parameters = drawn(dtype, 0)
    firsts = [torch.zeros_like(parameter) for parameter in parameters] if with_first_moment else None
    seconds = [torch.zeros_like(parameter) for parameter in parameters]
    steps = [new_step(parameter, kernel) for parameter in parameters]
    for count in range(6):
        gradients = gradients_of(count, dtype)
        given = [gradient.clone() for gradient in gradients]
        adamw_(kernel, parameters, gradients, firsts, seconds, steps, betas=(beta1, 0.9), **SETTINGS)
        assert all(torch.equal(left, gradient) for left, gradient in zip(gradients, given, strict=True))
    return Trained(parameters, firsts, seconds, steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_step_is_that_of_the_equations(dtype: torch.dtype) -> None:
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with beta1 = 0."""
    x = drawn(dtype, 0)[0].double()
    v = torch.zeros_like(x)
    for count in range(6):
        g = gradients_of(count, dtype)[0].double()
        v = 0.9 * v + 0.1 * g**2
        moved = SETTINGS["lr"] * g / ((v / (1 - 0.9 ** (count + 1))).sqrt() + SETTINGS["eps"])
        x = x - SETTINGS["lr"] * SETTINGS["weight_decay"] * x - moved
    found = trained("foreach", dtype, beta1=0.0, with_first_moment=False)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found.parameters[0].double(), x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.exp_avg_sqs[0].double(), v, rtol=tolerance, atol=tolerance * float(v.max()))
    assert [float(step) for step in found.steps] == [6.0] * len(SHAPES)


@pytest.mark.parametrize("beta1", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_fused_kernel_rounds_in_another_order_and_no_more(dtype: torch.dtype, beta1: float) -> None:
    foreach, fused = (
        trained(kernel, dtype, beta1=beta1, with_first_moment=beta1 > 0) for kernel in ("foreach", "fused")
    )
    tolerance = 4 * torch.finfo(dtype).eps  # a few roundings in each of six steps
    for found, wanted in zip(fused.parameters, foreach.parameters, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    for found, wanted in zip(fused.exp_avg_sqs, foreach.exp_avg_sqs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=0)


def test_a_first_moment_is_given_where_there_is_one() -> None:
    for beta1, with_first_moment in ((0.0, True), (0.5, False)):
        with pytest.raises(AssertionError):
            trained("foreach", torch.float32, beta1=beta1, with_first_moment=with_first_moment)


def test_on_a_cpu_the_kernel_is_foreach() -> None:
    assert kernel_for([torch.ones(2), torch.ones(3)]) == "foreach"
    assert kernel_for([]) == "foreach"
