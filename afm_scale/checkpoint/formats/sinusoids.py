"""The sinusoids by which a network is told its times, where two programs have others: a first layer for the other ones.

A linear layer W on sinusoids p(t) is W' on others q(t) if W p(t) = W' q(t). With M the least squares solution of
p = M q at all times that are asked for, W' = W M. SiT's are so slow (angles up to 1) that those of the others make
them up within 1e-7 at any time; the faster ones of DiT and diffusers make each other up only at a few chosen times.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ...core.sinusoids import TimeEmbedding, time_sinusoids

_SMALLEST = 1e-9  # singular value, of the largest
_MOST_OFF = 1e-6  # of a sinusoid, which is within one
_ANY_TIME = 4001  # times between 0 and 1 that stand for all


def on_other_sinusoids(
    weight: Tensor, found: TimeEmbedding, wanted: TimeEmbedding, times: Sequence[float] | None = None
) -> Tensor:
    """The first layer's weight [d, 256] for sinusoids of another kind, of the same dtype.

    Args:
        times: at which alone it is to be the same; None: at all from 0 to 1.

    Raises CheckpointError if there is none.
    """
    if found == wanted:
        return weight
    at = torch.linspace(0, 1, _ANY_TIME) if times is None else torch.tensor(sorted(set(times)))
    given, needed = (time_sinusoids(kind, at).double() for kind in (wanted, found))
    left, values, right = torch.linalg.svd(given, full_matrices=False)
    kept = values > _SMALLEST * values[0]
    solution = right[kept].T @ ((left[:, kept].T @ needed) / values[kept, None])  # [256, 256]
    off = (given @ solution - needed).abs().max().item()
    if off > _MOST_OFF:
        at_times = "any time" if times is None else f"{len(at)} times"
        raise CheckpointError(
            f"a network that is told its times by the sinusoids of {found!r} cannot be told them by those of "
            f"{wanted!r}: at {at_times} they are off by {off:.1g}"
        )
    return (weight.double() @ solution.T).to(weight.dtype)
