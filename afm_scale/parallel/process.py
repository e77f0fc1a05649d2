"""What a configuration sets for the whole process. Nothing else may, but for torch.compile's limits.

Those are raised by `compile_blocks`: it alone knows whether anything is compiled, and the compiler takes a second to
import.
"""

from __future__ import annotations

import os

import torch

from ..core.arithmetic import allow_tf32
from ..ops.choice import Choice, use
from .config import ParallelConfig


def set_environment(config: ParallelConfig) -> None:
    """Sets what CUDA and cuBLAS read when they start, where the user has not; to be called before anything is tried."""
    wanted = dict(config.of_plan.environment(config))
    if config.deterministic:
        wanted["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def configure_process(config: ParallelConfig, device: torch.device) -> Choice:
    """Sets TF32, deterministic kernels and the implementation of the fused operations; what of these was chosen.

    For this process, until it is called again. Raises ConfigError if the operations wanted do not work on `device`.
    """
    allow_tf32(config.precision)
    torch.use_deterministic_algorithms(config.deterministic)
    return use(config.ops, device)
