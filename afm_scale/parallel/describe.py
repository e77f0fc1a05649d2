"""What a configuration comes to: everything that `auto` or null leave open, decided for so many ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..core.errors import ConfigError
from ..core.network import Network
from ..ops.choice import choose, probe
from .config import ParallelConfig
from .precision import block_dtype


def describe(
    config: ParallelConfig, networks: Mapping[str, Network], world_size: int, *, device: torch.device | None = None,
    memory: int | None = None,
) -> dict[str, Any]:
    """Plain JSON values: plan, ranks, arithmetic, compile, recompute, implementation of each fused operation, networks.

    Needs no process group; networks that learn, by name, may lie on the meta device.

    Args:
        device: None: the one that the configuration means on this machine.
        memory: bytes of the smallest device of all ranks; None: as if all were like this machine's.
    """
    device = device or configured_device(config)
    lowered = block_dtype(config.precision)
    memory = memory_per_rank(device, world_size) if memory is None else memory
    return {
        "plan": config.plan, "ranks": world_size, "data_ranks": config.data_ranks(world_size), "device": device.type,
        "precision": config.precision, "dtype": _name(config.dtype), "block_dtype": _name(lowered or config.dtype),
        "compile": config.compiles_on(device.type), "recompute": config.recompute.kind,
        "operations": _operations(config, device),
        "networks": {
            name: config.of_plan.describe_network(
                network, dtype=config.dtype, block_dtype=lowered, memory=memory
            ) | {"blocks": len(network.shardable_blocks()), "repetitions": network.repetitions}
            for name, network in networks.items()
        },
    }


def in_one_line(described: Mapping[str, Any]) -> str:
    """What `describe` returns, for the console."""
    networks = [
        f"{name} {network['policy']}" for name, network in described["networks"].items() if "policy" in network
    ]
    plan = f"plan {described['plan']} on {described['ranks']} {described['device']} rank(s)"
    operations = sorted(set(described["operations"].values()))
    return "; ".join([
        plan + (f" ({', '.join(networks)})" if networks else ""),
        f"{described['precision']}, blocks in {described['block_dtype']}", f"operations of {' and '.join(operations)}",
        f"{'compiled' if described['compile'] else 'not compiled'}, recompute {described['recompute']}",
    ])


def configured_device(config: ParallelConfig) -> torch.device:
    """What `parallel.device` means on this machine."""
    on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_gpu else "cpu")


def memory_per_rank(device: torch.device, world_size: int) -> int:
    """Bytes of this rank's device; a CPU's as if all ranks shared this host, of which no launcher tells."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // world_size


def _operations(config: ParallelConfig, device: torch.device) -> dict[str, str]:
    try:
        return choose(config.ops, probe(device)).implementations()
    except ConfigError:  # asked for, and not to be had on this machine: training would refuse it here
        return {"all": f"{config.ops} (not here)"}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
