"""The torch pieces of a block against what they are by definition."""

from __future__ import annotations

import torch
from torch import Tensor

from afm_scale.ops import choice, triton_kernels
from afm_scale.ops.block import gated_residual, modulated_norm


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_modulated_norm_is_a_row_without_its_mean_over_its_deviation_scaled_and_shifted_per_sample() -> None:
    x, shift, scale = drawn(2, 3, 5), drawn(2, 5, seed=1), drawn(2, 5, seed=2)
    found = modulated_norm(x, shift, scale)
    for sample in range(2):
        for token in range(3):
            row = x[sample, token]
            normed = (row - row.mean()) / (row.var(unbiased=False) + 1e-6).sqrt()
            torch.testing.assert_close(found[sample, token], normed * (1 + scale[sample]) + shift[sample])


def test_a_gated_residual_adds_each_samples_share() -> None:
    x, gate, y = drawn(2, 3, 5), drawn(2, 5, seed=1), drawn(2, 3, 5, seed=2)
    found = gated_residual(x, gate, y)
    for sample in range(2):
        torch.testing.assert_close(found[sample], x[sample] + torch.stack([gate[sample]] * 3) * y[sample])


def test_gradients_are_the_limits_of_differences() -> None:
    x, y = drawn(2, 3, 5).requires_grad_(), drawn(2, 3, 5, seed=1).requires_grad_()
    first, second = drawn(2, 5, seed=2).requires_grad_(), drawn(2, 5, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(modulated_norm, (x, first, second))
    assert torch.autograd.gradcheck(gated_residual, (x, first, y))
    assert torch.autograd.gradgradcheck(modulated_norm, (x, first, second))  # torch's, whatever else may be chosen


def test_a_compiler_sees_torch_whatever_was_chosen(monkeypatch) -> None:
    """As if Triton had been chosen for the CPU, with kernels that must not be called."""
    def refuse(*_: Tensor) -> Tensor:
        raise RuntimeError("a kernel was called")

    interpreted = choice.Found(device_type="cpu", triton="", apex="no", interpreted=True)
    monkeypatch.setattr(choice, "_in_use", choice.choose("triton", interpreted))
    x, modulation = drawn(2, 3, 5).float(), drawn(2, 5).float()
    pieces = {"modulated_norm": (modulated_norm, modulation), "gated_residual": (gated_residual, x)}
    for name, (piece, last) in pieces.items():
        monkeypatch.setattr(triton_kernels, name, refuse)
        compiled = torch.compile(piece, backend="eager", fullgraph=True)
        found = compiled(x, modulation, last)
        with monkeypatch.context() as plain:
            plain.setattr(choice, "_in_use", choice.choose("torch", interpreted))
            torch.testing.assert_close(found, piece(x, modulation, last), rtol=0, atol=0)
        try:
            piece(x, modulation, last)
        except RuntimeError as error:
            assert str(error) == "a kernel was called"
        else:
            raise AssertionError("without the compiler the kernel was not called")


def test_tensors_that_no_kernel_takes_are_torchs(monkeypatch) -> None:
    """float64, two dtypes, another device than the one chosen for, nothing at all, rows that are too long."""
    def refuse(*_: Tensor) -> Tensor:
        raise RuntimeError("a kernel was called")

    interpreted = choice.Found(device_type="cpu", triton="", apex="no", interpreted=True)
    monkeypatch.setattr(choice, "_in_use", choice.choose("triton", interpreted))
    monkeypatch.setattr(triton_kernels, "gated_residual", refuse)
    x, gate = drawn(2, 3, 5), drawn(2, 5)
    assert gated_residual(x, gate, x).dtype == torch.float64
    assert gated_residual(x.bfloat16(), gate.float(), x.bfloat16()).dtype == torch.float32
    meta = gated_residual(x.float().to("meta"), gate.float().to("meta"), x.float().to("meta"))
    assert meta.shape == x.shape
    assert gated_residual(x[:0].float(), gate[:0].float(), x[:0].float()).shape == (0, 3, 5)
    wide = torch.ones(1, 1, 4097)
    assert torch.equal(gated_residual(wide, wide[:, 0], wide), 2 * wide)
