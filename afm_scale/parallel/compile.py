"""torch.compile, block by block: the blocks of a network are alike, so one compilation serves all of them.

Compiled are the networks that learn and, where asked for, frozen guides. Not the average: it only draws and evaluates
samples, in batches of many other sizes, each of which would be compiled again and pay for itself in no step.

A block is compiled once for each way in which training calls it, which makes these for a network:

    with or without a graph; learning, or only passing on a gradient (D in the generator's turn)
    the batch of each turn (D sees real, fake and perturbed samples in its own, at once or in two dtypes)
    all rows, or the first alone (the last block of D)

torch.compile keeps these beside the code of the function and, after 8 of them, would go back to plain PyTorch with no
more than a log line. So the blocks of each network get code of their own, the limit is raised, and `fullgraph` makes
what goes beyond it, or cannot be compiled in one piece, an error.

Modes of torch.compile are not offered. Those with CUDA graphs ('reduce-overhead') keep the addresses of weights, which
FSDP2 gathers into new memory; 'max-autotune' in torch 2.11 and 2.13 asks for TF32 through an interface that raises an
error once it was set through the newer one (pytorch pull request 189955).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from ..core.errors import ConfigError
from ..core.network import Network
from ..core.words import COMPILING, STANDING, Act
from ..ops.tangents import carries_tangent

BACKEND = "inductor"
MOST_WAYS = 32  # in which a network's blocks may be called: training has been seen to need 8
_MARK = "_compiled_by_afm_scale"

Forward = Callable[..., Tensor]


def compile_blocks(module: Network, wanted: bool | None, device: torch.device) -> None:
    """Compiles the forward of every block, on the instance; `wanted` None: on a GPU.

    Call it after `recompute`, which is compiled with the block, and before a plan adds hooks to it (by which weights
    are gathered): they stay outside, uncompiled. A network without blocks is left as it is. Raises ConfigError on a
    GPU without Triton. Raises torch's limit of recompilations for the whole process.
    """
    if not (device.type == "cuda" if wanted is None else wanted):
        return
    if device.type == "cuda" and not has_triton():
        raise ConfigError(
            "torch.compile needs Triton on a GPU, and there is none here that works with it; install triton, or set "
            "parallel.compile=false and model.compile_guides=false"
        )
    # Of the process, since torch 2.11 takes neither of these for one function.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_WAYS)
    # DDP would cut a block into parts of its buckets' size, and refuses what holds a recomputation.
    torch._dynamo.config.optimize_ddp = False
    _say_when_compiling()
    copies: dict[CodeType, CodeType] = {}
    for block in module.shardable_blocks():
        own = _with_own_code(block.forward, type(module).__name__, copies)
        compiled = torch.compile(own, backend=BACKEND, fullgraph=True, dynamic=False)
        block.forward = _where_it_can(compiled, block.forward)
        setattr(block.forward, _MARK, True)


@cache  # once in a process
def _say_when_compiling() -> None:
    """It takes longer than a step, whenever it comes: no other rank is to take it for a hang."""
    before: list[Act] = []
    torch._dynamo.callback.on_compile_start(lambda *_: before.append(STANDING.begin(COMPILING)))
    torch._dynamo.callback.on_compile_end(lambda *_: STANDING.begin(before.pop()))


def is_compiled(module: Network) -> bool:
    """Whether blocks of the network were compiled by `compile_blocks`."""
    return any(getattr(block.forward, _MARK, False) for block in module.shardable_blocks())


def _where_it_can(compiled: Forward, plain: Forward) -> Forward:
    """The compiled forward, but for a derivative in forward mode, which goes through nothing that was compiled."""

    @wraps(plain)
    def choose(*inputs: Any, **options: Any) -> Tensor:
        return (plain if carries_tangent(*filter(torch.is_tensor, inputs)) else compiled)(*inputs, **options)

    return choose


def _with_own_code(forward: Forward, owner: str, copies: dict[CodeType, CodeType]) -> Forward:
    """The same function or method, running a copy of its code; `copies` holds those made before for the network."""
    function = forward.__func__ if isinstance(forward, MethodType) else forward
    code = function.__code__
    if code not in copies:
        copies[code] = code.replace(co_name=f"{owner}_block_{code.co_name}")
    own = FunctionType(
        copies[code], function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return MethodType(own, forward.__self__) if isinstance(forward, MethodType) else own
