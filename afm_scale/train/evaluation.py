"""What a run says of its average while it trains: the callable that measures, and its finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .state import TrainState


class Evaluate(Protocol):
    """Measures the average of a run at a step boundary."""

    def __call__(self, state: TrainState) -> Mapping[str, float]:
        """Returns figures by name, the same on every rank. Collective; state and stream of data stay as they are.

        Raises, on every rank, DivergenceError for samples that are not finite.
        """
        ...

    def of_noise(self, state: TrainState) -> Mapping[str, float]:
        """The same of samples that are the noise they are drawn from: what a generator that does nothing would get."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The finding of one evaluation; the same on every rank, but for the seconds."""

    step: int
    images_seen: int
    figures: Mapping[str, float]
    seconds: float  # that the run stood still for it, on this rank
    noise: Mapping[str, float] | None = None  # figures of the noise itself, where somebody wants them


Listener = Callable[[Evaluation], None]
"""Is told of an evaluation on every rank."""
