"""What the pilot may do to a run at a step boundary, each with its reason in one line of the event log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AdvancePhase:
    """The next phase begins."""

    why: str


@dataclass(frozen=True, kw_only=True)
class AverageIntoGenerator:
    """The average becomes the weights that learn; the optimizer's state stays (the paper's EMA reload)."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The run is over before its last step."""

    why: str


Act = AdvancePhase | AverageIntoGenerator | Stop
