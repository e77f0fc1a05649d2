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
class ReloadDiscriminator:
    """The discriminator becomes that of an earlier step (the paper's D reload)."""

    to: int  # the step
    why: str


@dataclass(frozen=True, kw_only=True)
class TryDiscriminators:
    """Short branches decide which of these steps' discriminators comes back, if any."""

    candidates: tuple[int, ...]
    why: str


@dataclass(frozen=True, kw_only=True)
class RollBack:
    """The run goes back to a checkpoint of a step at which it was good."""

    not_after: int  # the newest step that was found good
    why: str


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The run is over before its last step."""

    why: str


Act = AdvancePhase | AverageIntoGenerator | ReloadDiscriminator | TryDiscriminators | RollBack | Stop
