"""The derivative in forward mode through the networks there are, against backward mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_scale.flow.derivative import derivative
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.mlp import MLPConfig, MLPGenerator
from tests.models.small import NUM_CLASSES, SHAPE, SIZE, awake, inputs

DIT = DiTGenerator(GeneratorConfig(**SIZE, times="both", qk_norm=True), SHAPE, NUM_CLASSES)
MLP = MLPGenerator(MLPConfig(width=8, scale=1.0), SHAPE, NUM_CLASSES)


@pytest.mark.parametrize("network", [DIT, MLP], ids=["dit", "mlp"])
def test_both_modes_of_differentiation_agree(network: nn.Module) -> None:
    """<w, J v> is the same from J v, forward, and from J^T w, backward."""
    network, (x, s, t, y) = awake(network), inputs()
    random = torch.Generator().manual_seed(0)
    v, w = (torch.randn(x.shape, dtype=torch.float64, generator=random) for _ in range(2))

    def called(x: Tensor, s: Tensor) -> Tensor:
        return network(x, s, t, y)

    value, along = derivative(called, (x, s), (v, torch.ones_like(s)))
    torch.testing.assert_close(value, called(x, s).detach(), rtol=1e-10, atol=1e-10)
    assert along.abs().max() > 1e-3 and not along.requires_grad
    leaves = x.clone().requires_grad_(), s.clone().requires_grad_()
    by_x, by_s = torch.autograd.grad((called(*leaves) * w).sum(), leaves)
    expected = (by_x * v).sum() + by_s.double().sum()  # times and their sinusoids are float32
    torch.testing.assert_close((along * w).sum(), expected, rtol=1e-5, atol=1e-4)
