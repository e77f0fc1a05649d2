"""Which arithmetic a network computes in.

Under bf16 and fp8 the blocks alone are lowered: they take a network's time, and what is left outside of them
(embedders, sinusoids, final LayerNorms, heads) is where a rounding would be seen in every logit and pixel. Parameters
stay float32 where they rest, and are cast for each use.

TF32 is switched on for the discriminator's penalties, whose blocks then compute in float32 (`PenaltyConfig.precise`):
in full float32 they would take several times as long as everything else. The switch is the process's, so layers outside
of the blocks switch it off around their products. Their backwards, and what else multiplies matrices of float32, may
use it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..core.arithmetic import Precision, block_dtype, without_tf32
from ..core.errors import ConfigError
from ..core.network import Network
from .kinds.kind import DescribedNetwork

FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
FP8_MULTIPLE = 16  # widths that its fp8 products can take


def set_precision(module: Network, precision: Precision, *, learns: bool) -> None:
    """Makes a network compute in a precision, before it is laid out over the ranks.

    Under fp8 networks that do not learn compute as under bf16. Raises ConfigError if there are no blocks to lower.
    """
    dtype = block_dtype(precision)
    if dtype is None:
        return
    if not module.shardable_blocks():
        raise ConfigError(
            f"parallel.precision {precision!r} lowers the blocks of a network, but {type(module).__name__} has none; "
            "set parallel.precision to fp32 or tf32"
        )
    module.compute_blocks_in(dtype)
    if precision == "fp8" and learns:
        from .fp8 import compute_in_fp8

        compute_in_fp8(module.large_linears())
    lowered = {part for block in module.shardable_blocks() for part in block.modules()}
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d) and part not in lowered:  # patches are embedded by a product
            part.forward = without_tf32(part.forward)


def lower_frozen(module: Network, precision: Precision) -> None:
    """Keeps what never learns in a network's blocks in the dtype that these compute in: half the bytes, at rest too.

    Nothing is lost by that: it would be cast to it for each use. For a network on the meta device.
    """
    dtype = block_dtype(precision)
    for part in [] if dtype is None else [part for block in module.shardable_blocks() for part in block.modules()]:
        for name, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                setattr(part, name, nn.Parameter(parameter.to(dtype), requires_grad=False))


def check_precision(precision: Precision, networks: Sequence[DescribedNetwork]) -> None:
    """Raises ConfigError where a precision is of blocks, and a network that a recipe describes has none that fit."""
    if block_dtype(precision) is None:
        return
    for network in networks:
        if not network.has_blocks:
            raise ConfigError(
                f"parallel.precision {precision!r} lowers the blocks of a network, but {network.setting} of kind "
                f"{network.kind!r} has none; set parallel.precision to fp32 or tf32"
            )
        if precision == "fp8" and network.hidden_size % FP8_MULTIPLE:
            raise ConfigError(
                f"parallel.precision fp8 multiplies matrices of widths divisible by {FP8_MULTIPLE}, but "
                f"{network.setting}.hidden_size is {network.hidden_size}; change it, or set parallel.precision=bf16"
            )


def fp8_error(device: torch.device) -> str:
    """Why this device cannot compute in fp8, or an empty string."""
    wanted = f"parallel.precision is fp8, which needs a GPU of compute capability {'.'.join(map(str, FP8_CAPABILITY))}"
    if device.type != "cuda":
        return f"{wanted} or newer, found device {device.type!r}; set parallel.precision=bf16"
    found = torch.cuda.get_device_capability(device)
    if found >= FP8_CAPABILITY:
        return ""
    return (
        f"{wanted} or newer, found {torch.cuda.get_device_name(device)} of {'.'.join(map(str, found))}; set "
        "parallel.precision=bf16"
    )
