"""What a GPU can do by its maker's data sheet: the one table of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. Peaks are dense, without structured sparsity, for which a data sheet often gives twice as much."""

    name: str  # in full, with the form that the figures are of
    memory_gb: float  # 1e9 bytes
    bandwidth_gb: float  # of its memory, 1e9 bytes a second
    bf16_tflops: float  # of the tensor cores, 1e12 operations a second; two to a multiplication and addition
    fp32_tflops: float  # without the tensor cores
    source: str  # a document of NVIDIA's


GPUS = {
    "a100": Gpu(
        name="A100 SXM 80 GB", memory_gb=80, bandwidth_gb=2039, bf16_tflops=312, fp32_tflops=19.5,
        source="A100 Tensor Core GPU data sheet, 2021",
    ),
    "h100": Gpu(
        name="H100 SXM", memory_gb=80, bandwidth_gb=3350, bf16_tflops=989, fp32_tflops=67,
        source="H100 Tensor Core GPU data sheet, 2023",
    ),
    "h200": Gpu(
        name="H200 SXM", memory_gb=141, bandwidth_gb=4800, bf16_tflops=989, fp32_tflops=67,
        source="H200 Tensor Core GPU data sheet, 2024",
    ),
    "gh200": Gpu(
        name="GH200, 96 GB HBM3", memory_gb=96, bandwidth_gb=4000, bf16_tflops=989, fp32_tflops=67,
        source="GH200 Grace Hopper Superchip data sheet, 2023",
    ),
    "l40s": Gpu(
        name="L40S PCIe", memory_gb=48, bandwidth_gb=864, bf16_tflops=362, fp32_tflops=91.6,
        source="L40S GPU data sheet, 2023",
    ),
    "b200": Gpu(
        name="B200 SXM, an eighth of an HGX B200", memory_gb=180, bandwidth_gb=7700, bf16_tflops=2250, fp32_tflops=75,
        source="Blackwell architecture data sheet, 2025",
    ),
}
_OTHER_FORMS = {"pcie", "nvl"}  # of the H100 and the H200: lower clocks than the SXM modules


def known_gpu(name: str) -> str | None:
    """The key of GPUS for a GPU by its driver's name ('NVIDIA H100 80GB HBM3'); None if its peak is not known.

    A part of one (MIG) is no GPU of the table.
    """
    words = re.split("[^a-z0-9]+", name.lower())
    found = next((word for word in words if word in GPUS), None)
    other_form = found in ("h100", "h200") and not _OTHER_FORMS.isdisjoint(words)
    return None if other_form or "mig" in words else found


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations a second of a device; None for a CPU, and for a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    gpu = known_gpu(torch.cuda.get_device_name(device))
    return None if gpu is None else GPUS[gpu].bf16_tflops * 1e12
