"""With fewer ranks than a run has had: the same global batch in more microbatches, where the recipe allows it."""

from __future__ import annotations

import os
from dataclasses import replace

from ..core.errors import ConfigError
from ..core.run_folder import RunFolder
from .config import RunConfig


def most_ranks(folder: RunFolder) -> int:
    """That a start of this run has had; 0 for a new one. Raises DataError for a log of events that is none."""
    if not folder.events.exists():
        return 0
    return max((event.get("world_size", 0) for event in folder.read_events() if event["kind"] == "start"), default=0)


def for_ranks(config: RunConfig, world_size: int, most: int) -> RunConfig:
    """The recipe as so many ranks train it, in a run that has had `most`.

    Where there are fewer now and `parallel.elastic` is set, `loop.accumulation` grows: microbatches are no larger than
    they were with the most ranks, and all of a step together are the same samples. Without it they grow instead, if a
    person has started the run so. Raises ConfigError if a launcher has, by itself; and for a batch that cannot be kept.
    """
    if world_size >= most:
        return config
    if not config.parallel.elastic:
        if os.environ.get("AFM_SCALE_STARTS", "0") != "0":
            raise ConfigError(
                f"{world_size} of {most} ranks are left, and the launcher has started them again: set "
                "parallel.elastic=true to go on with fewer, in more microbatches; or start all nodes again"
            )
        return config
    batch, accumulation = config.data.global_batch, config.loop.accumulation
    before, now = (config.parallel.data_ranks(ranks) for ranks in (most, world_size))
    if batch % now:
        fits = [ranks for ranks in range(1, before + 1) if batch % ranks == 0]
        raise ConfigError(
            f"parallel.elastic: {world_size} of {most} ranks are left, and data.global_batch {batch} cannot be kept by "
            f"them: it is not divisible by {now}. Start so many that {now} is one of {', '.join(map(str, fits))}, or "
            "set another data.global_batch in a new run"
        )
    at_most = max(batch // (before * accumulation), 1)
    largest = max(size for size in range(1, at_most + 1) if batch // now % size == 0)
    return replace(config, loop=replace(config.loop, accumulation=batch // now // largest))
