"""The pieces of a block as Triton kernels, forward and backward. Sums are in float32 whatever the dtype of x.

One program has one row of d numbers in the forward; in the backward it has a few rows of one sample, over which it adds
up the gradients of the sample's modulation. They are added in a fixed order: the same bits every time.

Legend: B batch, N tokens, d width, C groups of rows; `*_b` and `*_n` are the strides of B and N, that of d is 1.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_EPS = 1e-6  # of the LayerNorm
_ROWS = 16  # of one program in a backward, at most


@triton.jit
def _normalise(x, inside, width, eps):
    """A row and 0 where it is not `inside` -> the same with mean 0 and variance 1, and what it was multiplied by."""
    centred = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    factor = 1 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    return centred * factor, factor


@triton.jit
def _norm_forward(
    x, shift, scale, out, num_tokens, width, x_b, x_n, shift_b, scale_b, eps: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // num_tokens, row % num_tokens
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + sample * x_b + token * x_n + column, mask=inside, other=0.0).to(tl.float32)
    normed, _ = _normalise(values, inside, width, eps)
    factor = 1 + tl.load(scale + sample * scale_b + column, mask=inside, other=0.0).to(tl.float32)
    term = tl.load(shift + sample * shift_b + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, normed * factor + term, mask=inside)


@triton.jit
def _norm_backward(
    grad, x, scale, grad_x, sums, num_tokens, width, grad_b, grad_n, x_b, x_n, scale_b, sums_size, eps: tl.constexpr,
    WITH_SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """`sums` [2, B, C, d] are the gradients of shift and of scale, each `sums_size` numbers."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    factor = 1 + tl.load(scale + sample * scale_b + column, mask=column < width, other=0.0).to(tl.float32)
    shift_sum = tl.zeros([BLOCK], tl.float32)
    scale_sum = tl.zeros([BLOCK], tl.float32)
    for index in range(ROWS):
        token = group * ROWS + index
        inside = column < tl.where(token < num_tokens, width, 0)  # nothing of a row that is not there
        g = tl.load(grad + sample * grad_b + token * grad_n + column, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + sample * x_b + token * x_n + column, mask=inside, other=0.0).to(tl.float32)
        normed, shrink = _normalise(values, inside, width, eps)
        inner = g * factor
        mean, slope = tl.sum(inner, 0) / width, tl.sum(inner * normed, 0) / width
        tl.store(
            grad_x + (sample * num_tokens + token) * width + column, (inner - mean - normed * slope) * shrink,
            mask=inside,
        )
        shift_sum += g
        scale_sum += g * normed
    if WITH_SUMS:
        place = sums + (sample * tl.num_programs(1) + group) * width + column
        tl.store(place, shift_sum, mask=column < width)
        tl.store(place + sums_size, scale_sum, mask=column < width)


@triton.jit
def _residual_forward(
    x, gate, y, out, num_tokens, width, x_b, x_n, gate_b, y_b, y_n, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // num_tokens, row % num_tokens
    column = tl.arange(0, BLOCK)
    inside = column < width
    old = tl.load(x + sample * x_b + token * x_n + column, mask=inside, other=0.0).to(tl.float32)
    new = tl.load(y + sample * y_b + token * y_n + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(gate + sample * gate_b + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, old + factor * new, mask=inside)


@triton.jit
def _residual_backward(
    grad, gate, y, grad_y, sums, num_tokens, width, grad_b, grad_n, gate_b, y_b, y_n,
    WITH_SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """`sums` [B, C, d] is the gradient of gate."""
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    factor = tl.load(gate + sample * gate_b + column, mask=column < width, other=0.0).to(tl.float32)
    gate_sum = tl.zeros([BLOCK], tl.float32)
    for index in range(ROWS):
        token = group * ROWS + index
        inside = column < tl.where(token < num_tokens, width, 0)
        g = tl.load(grad + sample * grad_b + token * grad_n + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_y + (sample * num_tokens + token) * width + column, g * factor, mask=inside)
        if WITH_SUMS:
            gate_sum += g * tl.load(
                y + sample * y_b + token * y_n + column, mask=inside, other=0.0
            ).to(tl.float32)
    if WITH_SUMS:
        tl.store(sums + (sample * tl.num_programs(1) + group) * width + column, gate_sum, mask=column < width)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        x, shift, scale = _rows(x), _rows(shift), _rows(scale)
        batch, num_tokens, width = x.shape
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        with torch.cuda.device_of(x):
            _norm_forward[(batch * num_tokens,)](
                x, shift, scale, out, num_tokens, width, x.stride(0), x.stride(1), shift.stride(0), scale.stride(0),
                eps=_EPS, **_launch(width),
            )
        ctx.save_for_backward(x, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, scale = ctx.saved_tensors
        grad = _rows(grad)
        batch, num_tokens, width = x.shape
        wants_sums, rows, groups = any(ctx.needs_input_grad[1:]), *_groups(num_tokens)
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        sums = x.new_empty((2, batch, groups, width) if wants_sums else (0,), dtype=torch.float32)
        with torch.cuda.device_of(x):
            _norm_backward[(batch, groups)](
                grad, x, scale, grad_x, sums, num_tokens, width, grad.stride(0), grad.stride(1), x.stride(0),
                x.stride(1), scale.stride(0), batch * groups * width, eps=_EPS, WITH_SUMS=wants_sums, ROWS=rows,
                **_launch(width),
            )
        if not wants_sums:
            return grad_x, None, None
        grad_shift, grad_scale = sums.sum(2).to(x.dtype)
        return grad_x, grad_shift, grad_scale


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        x, gate, y = _rows(x), _rows(gate), _rows(y)
        batch, num_tokens, width = x.shape
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        with torch.cuda.device_of(x):
            _residual_forward[(batch * num_tokens,)](
                x, gate, y, out, num_tokens, width, x.stride(0), x.stride(1), gate.stride(0), y.stride(0), y.stride(1),
                **_launch(width),
            )
        ctx.save_for_backward(gate, y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        gate, y = ctx.saved_tensors
        rows_of_grad = _rows(grad)
        batch, num_tokens, width = y.shape
        wants_sums, rows, groups = ctx.needs_input_grad[1], *_groups(num_tokens)
        grad_y = torch.empty_like(y, memory_format=torch.contiguous_format)
        sums = y.new_empty((batch, groups, width) if wants_sums else (0,), dtype=torch.float32)
        with torch.cuda.device_of(y):
            _residual_backward[(batch, groups)](
                rows_of_grad, gate, y, grad_y, sums, num_tokens, width, rows_of_grad.stride(0), rows_of_grad.stride(1),
                gate.stride(0), y.stride(0), y.stride(1), WITH_SUMS=wants_sums, ROWS=rows, **_launch(width),
            )
        return grad, sums.sum(1).to(gate.dtype) if wants_sums else None, grad_y


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The kernel of `block.modulated_norm`; differentiable once, since the backward is a kernel too."""
    return _ModulatedNorm.apply(x, shift, scale)


def gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """The kernel of `block.gated_residual`; differentiable once."""
    return _GatedResidual.apply(x, gate, y)


def _rows(tensor: Tensor) -> Tensor:
    """The same with its last axis without gaps; parts of one linear layer's output have that, and are not copied."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _groups(num_tokens: int) -> tuple[int, int]:
    """How many rows a program of a backward has, and how many programs a sample has."""
    rows = min(_ROWS, triton.next_power_of_2(num_tokens))
    return rows, triton.cdiv(num_tokens, rows)


def _launch(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}  # 8 numbers, 16 bytes of bf16, for a thread
