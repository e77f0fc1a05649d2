"""What this machine has and what will therefore be used; with --data, whether a packed data set is whole; with
--cluster, under any launcher, what each rank can do and whether all are alike."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..core.errors import ConfigError
from ..core.packages import to_install
from ..core.screen import say
from ..data.table import SOURCES, check_packages
from ..ops.choice import choose, probe
from ..run.arguments import add_recipe
from ..run.tables import show_table
from .doctor_cluster import doctor_cluster_command
from .doctor_data import doctor_data_command

_BASE = (
    "torch", "numpy", "PyYAML", "safetensors", "scikit-learn", "Pillow", "matplotlib", "tensorboard", "tqdm", "rich",
)
_OPTIONAL = {
    "triton": "fused operations on a GPU (comes with torch for GPUs)",
    "apex": "fused optimizer and average on a GPU (NVIDIA's, built from source with --cpp_ext --cuda_ext)",
    "deepspeed": f"parallel.plan deepspeed: {to_install('deepspeed')}",
    "megatron-core": f"parallel.plan megatron: {to_install('megatron')}",
    "torchao": f"parallel.precision fp8: {to_install('fp8')}",
    "nvidia-dali-cuda130": f"data.kind dali: {to_install('dali')}",
    "diffusers": f"data.kind images_to_latents, tools/encode_latents.py: {to_install('latents')}",
    "transformers": f"tools/encode_prompts.py: {to_install('text')}",
    "pyarrow": f"packing parquet files: {to_install('parquet')}",
    "webdataset": f"what the data benchmark compares with: {to_install('webdataset')}",
    "wandb": f"metrics to Weights & Biases: {to_install('wandb')}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="PATH", help="compare every byte of this folder of shards")
    parser.add_argument(
        "--cluster", action="store_true",
        help="compare the ranks of a launcher: versions, speed, network, folder, clock",
    )
    parser.add_argument("--json", action="store_true")
    add_recipe(parser, required=False, note="with --cluster: whose settings have to be the same, and whose folder")


def run(options: argparse.Namespace) -> int:
    if options.cluster:
        return doctor_cluster_command(options.recipe, options.overrides, as_json=options.json)
    if options.recipe is not None:
        raise ConfigError(f"found the recipe {options.recipe}, which is for doctor --cluster; add that or leave it out")
    if options.data is not None:
        return doctor_data_command(options.data, as_json=options.json)
    return doctor_command(as_json=options.json)


def doctor_command(*, as_json: bool) -> int:
    findings = examine()
    if as_json:
        say(json.dumps(findings, indent=2))
        return 0
    sections = ([(name, str(value)) for name, value in section.items()] for section in findings.values())
    show_table("afm_scale doctor", *sections)
    return 0


def examine() -> dict[str, dict[str, Any]]:
    """Facts by section; plain JSON values."""
    operations = choose("auto", probe(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
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
            **{f"operation {piece}": how for piece, how in operations.described().items()},
            "attention": "torch scaled_dot_product_attention",
        },
        "data": _sources(on_gpu=bool(gpus)),
    }


def _sources(*, on_gpu: bool) -> dict[str, str]:
    """Whether each data.kind can be used here, and if not, why."""
    usable = {}
    for config in SOURCES:
        try:
            check_packages(config)
            usable[f"data.kind {config.kind}"] = f"yes: {config.decoding(on_gpu=on_gpu)}"
        except ConfigError as error:
            usable[f"data.kind {config.kind}"] = f"no: {error}"
    return usable


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
