"""What GPUs can do by their makers' data sheets, and those that a user describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from ..core.errors import ConfigError
from ..core.ranges import Range
from ..core.typed import Mistake, build


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. Peaks are of dense products; links are of one GPU in one direction."""

    memory: Annotated[float, Range(above=0, high=1e6)]  # GB (1e9 bytes)
    tflops: Annotated[float, Range(above=0, high=1e6)]  # TFLOP/s of bf16
    bandwidth: Annotated[float, Range(above=0, high=1e4)]  # TB/s of its memory
    tflops_tf32: Annotated[float, Range(above=0, high=1e6)] | None = None  # None: half of bf16
    tflops_fp32: Annotated[float, Range(above=0, high=1e6)] | None = None  # None: a sixteenth of bf16
    link: Annotated[float, Range(above=0, high=1e5)] = 450.0  # GB/s to GPUs of the same node
    network: Annotated[float, Range(above=0, high=1e5)] = 50.0  # GB/s to other nodes: a card of 400 Gbit/s for each GPU

    def peak(self, precision: str) -> float:
        """FLOP/s of products in 'bf16', 'tf32' or 'fp32'."""
        half = self.tflops if self.tflops_tf32 is None else 0
        found = {
            "bf16": self.tflops, "tf32": self.tflops_tf32 or half / 2, "fp32": self.tflops_fp32 or self.tflops / 16,
        }
        return found[precision] * 1e12


# By NVIDIA's data sheets of the SXM modules (H100 2022, H200 2024, A100 80GB 2021, DGX B200 2024 and DGX B300 2025 for
# one of eight GPUs, GH200 96 GB 2023; L40S 2023: PCIe 4.0 x16) and AMD's of the MI300X (2023; seven links of 64 GB/s).
# Dense figures: where a sheet has them with sparsity alone they are halved. Networks: one card of 400 Gbit/s for each
# GPU, as DGX H100 and B200 have; the A100's has 200.
GPUS = {
    "a100": Gpu(memory=80, tflops=312, tflops_tf32=156, tflops_fp32=19.5, bandwidth=2.039, link=300, network=25),
    "h100": Gpu(memory=80, tflops=989, tflops_tf32=494.5, tflops_fp32=67, bandwidth=3.35, link=450),
    "h200": Gpu(memory=141, tflops=989, tflops_tf32=494.5, tflops_fp32=67, bandwidth=4.8, link=450),
    "gh200": Gpu(memory=96, tflops=989, tflops_tf32=494.5, tflops_fp32=67, bandwidth=4.0, link=450),
    "l40s": Gpu(memory=48, tflops=362, tflops_tf32=183, tflops_fp32=91.6, bandwidth=0.864, link=32, network=25),
    "b200": Gpu(memory=180, tflops=2250, tflops_tf32=1125, tflops_fp32=75, bandwidth=7.7, link=900),
    "b300": Gpu(memory=270, tflops=2250, tflops_tf32=1125, tflops_fp32=75, bandwidth=7.7, link=900, network=100),
    "mi300x": Gpu(memory=192, tflops=1307, tflops_tf32=654, tflops_fp32=163, bandwidth=5.3, link=448),
}


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
