"""What a recipe leaves open, decided: the values that `auto` and null stand for with these ranks, on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..core.batch_size import microbatch_size
from ..core.errors import ConfigError
from ..core.typed import to_mapping
from ..ops.choice import choose, probe
from ..parallel.describe import configured_device, memory_per_rank
from ..parallel.precision import block_dtype
from .config import RunConfig
from .networks import build_networks


def left_open(config: RunConfig, world_size: int) -> dict[str, str]:
    """Values and their reasons by setting; builds the networks without storage, and touches no file of the data."""
    parallel, data = config.parallel, config.data
    device = configured_device(parallel)
    shares = parallel.data_ranks(world_size)
    guides = config.model.compile_guides
    samples = microbatch_size(data.global_batch, shares, config.loop.accumulation)
    return {
        "parallel.device": device.type,
        "parallel.compile": _said(parallel.compiles_on(device.type)),
        "model.compile_guides": _said(replace(parallel, compile=guides).compiles_on(device.type)),
        **_operations(config, device),
        **dict(_plan(config, device, world_size)),
        **dict(_differences(to_mapping(config.objective), to_mapping(config.objective.resolved(parallel.precision)))),
        "microbatch": f"{samples} samples ({data.global_batch} over {shares} x {config.loop.accumulation})",
        "samples": f"{' x '.join(map(str, data.shape))}, {data.num_classes} classes",
    }


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _operations(config: RunConfig, device: torch.device) -> dict[str, str]:
    if device.type == "cuda" and not torch.cuda.is_available():
        return {"parallel.ops": "decided on the machine with the GPU"}
    try:
        chosen = choose(config.parallel.ops, probe(device))
    except ConfigError as error:  # the recipe may be for another machine than this one
        return {"parallel.ops": f"not on this machine: {error}"}
    return {f"parallel.ops, {piece}": why for piece, why in chosen.described().items()}


def _plan(config: RunConfig, device: torch.device, world_size: int) -> Iterator[tuple[str, str]]:
    """What the plan makes of every network that learns, in its own words."""
    parallel = config.parallel
    if device.type == "cuda" and not torch.cuda.is_available():
        yield f"parallel.plan {parallel.plan}", "decided by the memory of the GPU"
        return
    memory = memory_per_rank(device, world_size)
    for role, network in build_networks(config).items():
        found = parallel.of_plan.describe_network(
            network, dtype=parallel.dtype, block_dtype=block_dtype(parallel.precision), memory=memory
        )
        if found:
            words = (f"{name.replace('_', ' ')} {_said(value)}" for name, value in found.items())
            yield f"parallel.plan {parallel.plan}, {role.value}", ", ".join(words)


def _differences(given: Any, decided: Any, setting: str = "objective") -> Iterator[tuple[str, str]]:
    """Where two mappings of the same configuration differ."""
    if isinstance(given, Mapping) and isinstance(decided, Mapping):
        for name, value in decided.items():
            yield from _differences(given.get(name), value, f"{setting}.{name}")
    elif given != decided:
        yield setting, _said(decided)
