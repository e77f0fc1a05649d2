"""Torch's switches of TF32, older and newer, in whatever order they are set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from afm_scale.core.arithmetic import allow_tf32, full_float32, without_tf32


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    allow_tf32("fp32")


def switches() -> tuple[bool, bool]:
    """(products, convolutions), as the older ones say; torch raises where the newer ones disagree."""
    found = torch._C._get_cublas_allow_tf32(), torch._C._get_cudnn_allow_tf32()
    newer = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    assert tuple(value == "tf32" for value in newer) == found
    return found


@pytest.mark.parametrize("precision, expected", [
    ("fp32", (False, False)), ("fp64", (False, False)), ("tf32", (True, True)), ("bf16", (True, False)),
    ("fp8", (True, False)),
])
def test_in_full_float32_no_switch_is_on_and_afterwards_all_are_as_before(
    precision: str, expected: tuple[bool, bool]
) -> None:
    allow_tf32(precision)
    assert switches() == expected
    with full_float32(torch.device("cpu")):
        assert switches() == (False, False)
    assert switches() == expected


def test_a_function_without_tf32_switches_products_off_for_itself_alone_even_if_it_fails() -> None:
    allow_tf32("tf32")

    def fail(x: torch.Tensor) -> torch.Tensor:
        assert switches() == (False, True)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        without_tf32(fail)(torch.ones(1))
    assert switches() == (True, True)
