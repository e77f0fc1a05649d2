"""Attention under both modes of differentiation."""

from __future__ import annotations

import math

import torch

from afm_scale.flow.derivative import derivative
from afm_scale.ops.attention import attention
from afm_scale.ops.tangents import carries_tangent

random = torch.Generator().manual_seed(0)
Q, K, V, DQ, DK, DV = (torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=random) for _ in range(6))


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1) @ v


def test_it_is_softmax_attention() -> None:
    torch.testing.assert_close(attention(Q, K, V), by_hand(Q, K, V), rtol=1e-12, atol=1e-12)


def test_its_derivative_in_forward_mode_is_that_of_the_formula() -> None:
    value, along = derivative(attention, (Q, K, V), (DQ, DK, DV))
    torch.testing.assert_close(value, by_hand(Q, K, V), rtol=1e-12, atol=1e-12)
    step = 1e-6
    before, after = (by_hand(Q + e * DQ, K + e * DK, V + e * DV) for e in (-step, step))
    torch.testing.assert_close(along, (after - before) / (2 * step), rtol=1e-7, atol=1e-8)
    assert not along.requires_grad


def test_a_tangent_is_seen_inside_of_a_derivative_and_nowhere_else() -> None:
    seen = []

    def watch(q: torch.Tensor) -> torch.Tensor:
        seen.append((carries_tangent(q), carries_tangent(V), carries_tangent(V, q)))
        return q

    derivative(watch, (Q,), (DQ,))
    assert seen == [(True, False, True)] and not carries_tangent(Q)
