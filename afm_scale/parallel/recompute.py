"""Recomputation (activation checkpointing, arXiv 1604.06174): less is kept for the backward, and computed again there.

Only the non-reentrant kind of torch.utils.checkpoint. The reentrant one runs a backward inside the backward: with
sharded blocks that are used R > 1 times its gradients are silently wrong (measured: by 1e-2 to 4e-2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ..core.errors import ConfigError
from ..core.network import Network
from ..core.ranges import Range

Forward = Callable[..., Tensor]

_ATEN = torch.ops.aten
_EXPENSIVE = [  # what `selective` keeps: matrix products, and attention under each of its kernels
    _ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default, _ATEN._scaled_mm.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default, _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default, _ATEN._scaled_dot_product_cudnn_attention.default,
]


@dataclass(frozen=True, kw_only=True)
class _NonReentrant:
    reentrant: bool = False  # here to be refused with the reason

    def __post_init__(self) -> None:
        if self.reentrant:
            raise ConfigError(
                "reentrant is true, but reentrant recompute gives wrong gradients, without an error, where blocks are "
                "used repeatedly; leave it out: recompute is always non-reentrant"
            )


@dataclass(frozen=True, kw_only=True)
class Recompute(_NonReentrant):
    """What a backward computes again, instead of keeping it. The kind alone may be given: `recompute: full`.

    none: nothing. full: every use of every block; kept is its input.
    selective: all but matrix products and attention, whose results are kept.
    per_repetition: every pass through all blocks; kept is its input, and one pass at a time is computed again.
    """

    shorthand: ClassVar[str] = "kind"
    kind: Literal["none", "full", "selective", "per_repetition"] = "none"  # what a backward computes again


@dataclass(frozen=True, kw_only=True)
class RecomputeEvery(_NonReentrant):
    """Every k-th block as `full`, the others as `none`."""

    kind: Literal["every"]
    k: Annotated[int, Range(1, 1_000)]  # every k-th block is recomputed


RecomputeConfig = Recompute | RecomputeEvery


def recompute(module: Network, config: RecomputeConfig) -> None:
    """Makes a network that learns compute again what `config` says, in every forward that builds a graph.

    Replaces `forward` of the blocks, or the network's `passes`, on the instance: no name in the state dict changes, and
    hooks that are added to a block later (FSDP2's) stay outside of its recomputed forward.
    Raises ConfigError if there is nothing that could be recomputed.
    """
    if config.kind == "none":
        return
    blocks = module.shardable_blocks()
    every = config.k if isinstance(config, RecomputeEvery) else 1
    if len(blocks) < every:
        wanted = "a network of blocks" if every == 1 else f"k of at most that (found {every})"
        raise ConfigError(
            f"parallel.recompute is of kind {config.kind!r}, but {type(module).__name__} has {len(blocks)} blocks, "
            f"wanted {wanted}; set parallel.recompute=none"
        )
    if config.kind == "per_repetition":
        if not module.passes:
            raise ConfigError(
                f"parallel.recompute is of kind 'per_repetition', but {type(module).__name__} has no passes that could "
                "be computed again as one; set parallel.recompute=full"
            )
        for name in module.passes:
            setattr(module, name, _recomputed(getattr(module, name)))
        return
    how = _selectively_recomputed if config.kind == "selective" else _recomputed
    for block in blocks[every - 1 :: every]:
        block.forward = how(block.forward)


def _recomputed(forward: Forward) -> Forward:
    # No random numbers to restore: no block draws any.
    return _with_graph(forward, partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False))


def _selectively_recomputed(forward: Forward) -> Forward:
    contexts = partial(create_selective_checkpoint_contexts, _EXPENSIVE)
    keeping = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return _with_graph(forward, keeping)


def _with_graph(forward: Forward, recomputing: Forward) -> Forward:
    """Without a graph nothing is kept, so nothing need be computed again: then the plain forward."""

    @wraps(forward)
    def choose(*inputs: Any, **options: Any) -> Tensor:
        return (recomputing if torch.is_grad_enabled() else forward)(*inputs, **options)

    return choose
