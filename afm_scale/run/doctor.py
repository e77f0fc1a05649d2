"""`python -m afm_scale doctor`: what this machine has and what will therefore be used."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

_BASE = (
    "torch", "numpy", "PyYAML", "safetensors", "scikit-learn", "Pillow", "matplotlib", "tensorboard", "tqdm", "rich",
)
_OPTIONAL = {"wandb": "metrics to Weights & Biases (pip install afm_scale[wandb])"}


def doctor_command(*, as_json: bool) -> int:
    findings = examine()
    if as_json:
        print(json.dumps(findings, indent=2))
        return 0
    table = Table(title="afm_scale doctor", show_header=False, title_justify="left")
    for section in findings.values():
        for name, value in section.items():
            table.add_row(name, str(value))
        table.add_section()
    Console(soft_wrap=True).print(table)
    return 0


def examine() -> dict[str, dict[str, Any]]:
    """Facts by section; plain JSON values."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus] or "none",
            "collectives": "nccl for GPUs, gloo for the CPU" if gpus and dist.is_nccl_available() else "gloo",
        },
        "packages": {name: _version(name) or "MISSING: pip install -c constraints.txt -e ." for name in _BASE},
        "optional": {name: _version(name) or f"not installed: {use}" for name, use in _OPTIONAL.items()},
        "used here": {
            "parallel.device auto": "cuda" if gpus else "cpu",
            "fused operations": "torch (there are no others yet)",
            "attention": "torch scaled_dot_product_attention",
            "data": "digits, mixture1d, synthetic (embedded)",
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
