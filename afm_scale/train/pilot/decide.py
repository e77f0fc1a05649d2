"""What to do at a step boundary: a function of the pilot's memory and settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .acts import Act, AdvancePhase, AverageIntoGenerator, RollBack, Stop
from .config import PilotConfig
from .memory import Memory
from .phases import Phase, why_over
from .reload import on_stall
from .rules import last_good


def decide(
    config: PilotConfig, phases: Sequence[Phase], memory: Memory, *, step: int, images_seen: int
) -> Iterator[Act]:
    """The acts of this boundary, in the order they are to be done."""
    rise = config.rules.divergence
    if config.roll_back is not None and rise is not None and memory.is_pending and "divergence" in memory.fired:
        # Of what follows nothing is decided: it is of weights that are given up.
        good = last_good(rise, memory.points, config.quality, memory.noise.get(config.quality))
        yield RollBack(not_after=good, why="the quality has risen sharply")
        return
    current = phases[memory.phase].config
    over = why_over(
        current.until, memory, step=step, images_seen=images_seen, images_per_epoch=config.images_per_epoch,
        quality=config.quality,
    )
    if memory.is_pending and current.average_into_generator == "every_evaluation":
        yield AverageIntoGenerator(why=f"phase {current.name}")
    is_last = memory.phase + 1 == len(phases)
    if over is not None:
        yield Stop(why=f"the last phase is over: {over}") if is_last else AdvancePhase(why=over)
    elif current.discriminator_reload == "on_stagnation" and memory.is_pending and "stall" in memory.fired:
        least = config.rules.stall.least_improvement if config.rules.stall is not None else 0.0
        act = on_stall(
            config.reload, memory, step=step, quality=config.quality, least_improvement=least, is_last=is_last
        )
        if act is not None:
            yield act
