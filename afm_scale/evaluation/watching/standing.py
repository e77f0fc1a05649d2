"""How a run stands: whether it goes on, and if not, how it ended and why. From its files, which decide nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.errors import UserError
from ...core.files import read_regular
from ...core.history import Event
from ...core.holder import holder_of
from ...core.holding import BEAT_SECONDS, MISSED_BEATS
from ...core.run_folder import RunFolder

State = Literal["goes on", "done", "stopped", "failed", "silent", "not begun"]
SILENCE_SECONDS = 2 * MISSED_BEATS * BEAT_SECONDS
"""Without a beat, after which whoever holds a folder is taken for gone; clocks of hosts differ a little."""
_LOG_BYTES = 2**20  # of a rank's log, more than any traceback
_ENDS = ("signal", "failed", "divergence", "inconsistency")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """In a word, and in a sentence for a person."""

    state: State
    why: str


def standing_of(
    folder: RunFolder, events: Sequence[Event], total_steps: int | None, clock: Callable[[], float] = time.time
) -> Standing:
    """By the process that holds the folder, if it beats; else by the last word of the run, of which each is told.

    Args:
        events: as the run finally went (`core.history.history`).
        total_steps: of its settings; None: not known.
    """
    held = holder_of(folder.path)
    if held is not None:
        holder, beat = held
        if clock() - beat < SILENCE_SECONDS:
            return Standing(state="goes on", why=f"{holder}")
    since_start = _since_last_start(events)
    summary = _summary(folder)
    if summary is not None and total_steps is not None and summary >= total_steps:
        return Standing(state="done", why=f"finished at step {summary:,}")
    last = next((event for event in reversed(since_start) if event["kind"] in _ENDS), None)
    if last is not None:
        return _of_last_word(last)
    if held is not None:
        return Standing(
            state="silent", why=f"{holder} has given no sign for {_ago(clock() - beat)}: killed, or its machine is gone"
        )
    told = [f"{path.name}: {line}" for path in rank_logs(folder) if (line := first_line(path))]
    if told:
        return Standing(state="failed", why=told[0])
    if not since_start:
        return Standing(state="not begun", why="there is no start in its events")
    return Standing(state="silent", why="it has ended without a word: killed, or its host went down")


def rank_logs(folder: RunFolder) -> list[Path]:
    """What ranks wrote that lost others or failed, the lowest rank first."""
    return sorted(folder.path.glob("rank_*.log"))


def first_line(path: Path) -> str:
    """Of the last entry of a rank's log; empty if it cannot be read."""
    try:
        lines = read_regular(path, _LOG_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    heads = [line for line in lines if " rank " in line and line[:1].isdigit()]
    return heads[-1] if heads else lines[0] if lines else ""


def _of_last_word(event: Event) -> Standing:
    step = f"at step {event['step']:,}" if type(event.get("step")) is int else ""
    if event["kind"] == "signal":
        return Standing(
            state="stopped", why=f"by {event.get('signal')} {step}: the same command goes on from its checkpoint"
        )
    if event["kind"] == "failed":
        return Standing(state="failed", why=f"{step}: {event.get('why')}")
    about = ", ".join(f"{key} {event[key]}" for key in ("player", "term", "tensor", "rank") if key in event)
    return Standing(state="failed", why=f"{event['kind']} {step}: {about}")


def _since_last_start(events: Sequence[Event]) -> Sequence[Event]:
    starts = [number for number, event in enumerate(events) if event["kind"] == "start"]
    return events[starts[-1]:] if starts else []


def _summary(folder: RunFolder) -> int | None:
    """The step that the run was finished at; None if it was not."""
    try:
        found: Any = json.loads(read_regular(folder.summary))
    except (OSError, ValueError, RecursionError, UserError):
        return None
    step = found.get("step") if isinstance(found, dict) else None
    return step if type(step) is int else None


def _ago(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
