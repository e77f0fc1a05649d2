"""What a run's two logs come to: events as the run finally went, and a curve for each number.

A run that was killed goes on from its newest checkpoint, and one that is rolled back from an older one. What it had
noted of the steps after that is no part of it any more: they are taken again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import DataError

Event = Mapping[str, Any]
"""{"kind": str, ...}, and mostly "step", the state's when it was noted."""

_DECIDED = ("phase", "rule", "act", "trial")  # noted before a step, so perhaps after the checkpoint of the same step


def history(events: Iterable[Event]) -> list[Event]:
    """The events of a run as it finally went, in the order of writing.

    A `start` at step s, and an act "roll_back" `to` step s, take away all that was noted before of later steps. A
    roll-back is itself kept: it stands at the step that it led to. What was decided at step s may have been decided
    after the checkpoint of s was written; if it is noted again, the newer note stands.

    Raises DataError for a roll-back that does not say where to.
    """
    kept: list[Event] = []
    doubtful: dict[tuple, Event] = {}
    for event in events:
        earlier = doubtful.pop(_what(event), None)
        if earlier is not None:
            kept = [other for other in kept if other is not earlier]
        back = event.get("step") if event["kind"] == "start" else _stands_at(event) if _is_roll_back(event) else None
        if back is not None:
            kept = [other for other in kept if _stands_at(other) <= back]
            doubtful = {
                _what(other): other for other in kept
                if other["kind"] in _DECIDED and _stands_at(other) == back
                and (event["kind"] == "start" or not _is_roll_back(other))  # a run may go back twice to the same step
            }
        kept.append(event)
    return kept


@dataclass(frozen=True)
class Curve:
    """One number over the steps, which rise. What was not finite is NaN."""

    steps: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: Any) -> None:
        """Forgets what was there of this step and later ones. Raises ValueError if it is no number, or None."""
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"{str(value)[:40]!r} is no number")
        self.forget_from(step)
        self.steps.append(step)
        self.values.append(_finite(value))

    def forget_from(self, step: int) -> None:
        if self.steps and self.steps[-1] >= step:
            first = bisect_left(self.steps, step)
            del self.steps[first:], self.values[first:]


class Curves:
    """A curve for each other name in rows {"step": int, name: number or None, ...}; a row forgets those of later steps.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Curve] = {}
        self._newest = -1

    def add(self, row: Mapping[str, Any]) -> None:
        """Raises DataError for a value that is neither a number nor None."""
        step = row["step"]
        if step <= self._newest:
            for curve in self._by_name.values():
                curve.forget_from(step)
        self._newest = step
        for name, value in row.items():
            if name == "step":
                continue
            try:
                self._by_name.setdefault(name, Curve()).add(step, value)
            except ValueError as error:
                raise DataError(f"the row of step {step}: {name}: {error}; restore the log of metrics") from error

    def found(self) -> dict[str, Curve]:
        """By name, in the order in which they came; none is empty."""
        return {name: curve for name, curve in self._by_name.items() if curve.steps}


def curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Those of all rows at once."""
    made = Curves()
    for row in rows:
        made.add(row)
    return made.found()


def _is_roll_back(event: Event) -> bool:
    return event["kind"] == "act" and event.get("act") == "roll_back"


def _stands_at(event: Event) -> int:
    """The step of the state after it; -1 for what is of no step."""
    where = event.get("to") if _is_roll_back(event) else event.get("step", -1)
    if type(where) is not int:
        raise DataError(f"the log of events: a roll-back to {str(where)[:40]!r}, wanted a step; restore the log")
    return where


def _what(event: Event) -> tuple:
    """Two notes of the same decision agree in it."""
    return tuple(str(event.get(key)) for key in ("kind", "step", "act", "rule", "to"))


def _finite(value: int | float | None) -> float:
    try:
        number = float("nan") if value is None else float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return float("nan")
    return number if number - number == 0 else float("nan")
