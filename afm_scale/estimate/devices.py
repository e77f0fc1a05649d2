"""What GPUs can do by their makers' data sheets, in one table, and those that a user describes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from ..core.errors import ConfigError
from ..core.ranges import Range
from ..core.typed import Mistake, build


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. Peaks are dense, without structured sparsity, for which a data sheet often gives twice as much; links
    are of one GPU in one direction."""

    name: str = "a described one"  # in full, with the form that the figures are of
    source: str = "its user"
    memory: Annotated[float, Range(above=0, high=1e6)]  # GB (1e9 bytes)
    tflops: Annotated[float, Range(above=0, high=1e6)]  # of bf16 products, 1e12 operations a second
    bandwidth: Annotated[float, Range(above=0, high=1e4)]  # TB/s of its memory
    tflops_tf32: Annotated[float, Range(above=0, high=1e6)] | None = None  # None: half of bf16
    tflops_fp32: Annotated[float, Range(above=0, high=1e6)] | None = None  # without tensor cores; None: 1/16 of bf16
    link: Annotated[float, Range(above=0, high=1e5)] = 450.0  # GB/s to GPUs of the same node
    network: Annotated[float, Range(above=0, high=1e5)] = 50.0  # GB/s to other nodes: a card of 400 Gbit/s for each GPU
    measured: bool = False  # rates that were reached, of which nothing is taken off, and not a data sheet's
    # Of a device that the host waits for, as a CPU, in microseconds:
    host: Annotated[float, Range(0, 1e6)] = 0.0  # around a kernel
    latency: Annotated[float, Range(0, 1e6)] = 0.0  # around a collective
    hook: Annotated[float, Range(0, 1e6)] = 0.0  # in one of FSDP2's hooks
    again: Annotated[float, Range(0, 1e6)] = 0.0  # more around a kernel that a recomputation computes again

    def peak(self, precision: str) -> float:
        """FLOP/s of products in 'bf16', 'tf32' or 'fp32'."""
        found = {
            "bf16": self.tflops,
            "tf32": self.tflops / 2 if self.tflops_tf32 is None else self.tflops_tf32,
            "fp32": self.tflops / 16 if self.tflops_fp32 is None else self.tflops_fp32,
        }
        return found[precision] * 1e12


# Figures that a sheet has with sparsity alone are halved. Networks: one card of 400 Gbit/s for each GPU, as DGX H100
# and B200 have; the A100's has 200. MI300X: seven links of 64 GB/s.
GPUS = {
    "a100": Gpu(
        name="A100 SXM 80 GB", source="NVIDIA A100 Tensor Core GPU data sheet, 2021",
        memory=80, tflops=312, tflops_tf32=156, tflops_fp32=19.5, bandwidth=2.039, link=300, network=25,
    ),
    "h100": Gpu(
        name="H100 SXM", source="NVIDIA H100 Tensor Core GPU data sheet, 2023",
        memory=80, tflops=989, tflops_tf32=494.5, tflops_fp32=67, bandwidth=3.35,
    ),
    "h200": Gpu(
        name="H200 SXM", source="NVIDIA H200 Tensor Core GPU data sheet, 2024",
        memory=141, tflops=989, tflops_tf32=494.5, tflops_fp32=67, bandwidth=4.8,
    ),
    "gh200": Gpu(
        name="GH200, 96 GB HBM3", source="NVIDIA GH200 Grace Hopper Superchip data sheet, 2023",
        memory=96, tflops=989, tflops_tf32=494.5, tflops_fp32=67, bandwidth=4.0,
    ),
    "l40s": Gpu(
        name="L40S, PCIe 4.0 x16", source="NVIDIA L40S GPU data sheet, 2023",
        memory=48, tflops=362, tflops_tf32=183, tflops_fp32=91.6, bandwidth=0.864, link=32, network=25,
    ),
    "b200": Gpu(
        name="B200 SXM, an eighth of an HGX B200", source="NVIDIA Blackwell architecture data sheet, 2025",
        memory=180, tflops=2250, tflops_tf32=1125, tflops_fp32=75, bandwidth=7.7, link=900,
    ),
    "b300": Gpu(
        name="B300 SXM, an eighth of a DGX B300", source="NVIDIA DGX B300 data sheet, 2025",
        memory=270, tflops=2250, tflops_tf32=1125, tflops_fp32=75, bandwidth=7.7, link=900, network=100,
    ),
    "mi300x": Gpu(
        name="MI300X", source="AMD Instinct MI300X data sheet, 2023",
        memory=192, tflops=1307, tflops_tf32=654, tflops_fp32=163, bandwidth=5.3, link=448,
    ),
}
_OTHER_FORMS = {"pcie", "nvl"}  # of the H100 and the H200: lower clocks than the SXM modules


def gpu_of(name: str, described: Any = None) -> Gpu:
    """One of the table by its name, or the one that a mapping describes. Raises ConfigError."""
    wanted = (
        f"choose {', '.join(GPUS)}, or give its figures: --gpu \"{{memory: 80, tflops: 989, bandwidth: 3.35}}\" (GB, "
        "TFLOP/s of dense bf16, TB/s)"
    )
    if not isinstance(described, dict):
        if name not in GPUS:
            raise ConfigError(f"--gpu {name}: it is not known; {wanted}")
        return GPUS[name]
    try:
        return build(Gpu, described, ("--gpu",))
    except Mistake as mistake:
        raise ConfigError(f"{mistake}; {wanted}") from None


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
    return None if gpu is None else GPUS[gpu].peak("bf16")
