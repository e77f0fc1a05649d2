"""How the global batch is cut: equally, over ranks and their microbatches."""

from __future__ import annotations

from .errors import ConfigError


def microbatch_size(global_batch: int, num_ranks: int, accumulation: int | None = None) -> int:
    """Samples in one of `accumulation` microbatches (None: there are none, it is one) on one of `num_ranks` ranks.

    Raises ConfigError with the nearest sizes that can be cut so.
    """
    if accumulation is None and global_batch < 1:
        raise ConfigError(f"data.global_batch is {global_batch}; it counts samples and must be at least 1")
    parts = num_ranks * (accumulation or 1)
    if global_batch >= 1 and global_batch % parts == 0:
        return global_batch // parts
    below, above = global_batch // parts * parts, (max(global_batch, 0) // parts + 1) * parts
    choices = f"{below} or {above}" if below > 0 else str(above)
    if accumulation is None:
        raise ConfigError(
            f"data.global_batch {global_batch} is not divisible by {num_ranks} ranks; "
            f"use {choices}, or a number of ranks that divides {global_batch}"
        )
    raise ConfigError(
        f"data.global_batch {global_batch} is not divisible by ranks {num_ranks} x loop.accumulation "
        f"{accumulation} = {parts}; use data.global_batch={choices}, or change loop.accumulation"
    )
