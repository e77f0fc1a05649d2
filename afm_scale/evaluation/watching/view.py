"""What a page shows of a run, as plain values; the logs are followed, so that a long run is not read anew each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import DataError, UserError
from ...core.history import Curve, Curves, Event, history
from ...core.run_folder import GrowingLog, RunFolder
from ..course import Course, course, quality_of
from ..course_panels import Line, Panel, drawable, is_log, panels_of, thinned
from ..statistics import Array
from .standing import first_line, rank_logs, standing_of

MOST_POINTS = 400  # of a curve that is sent
_LAST_ACTS = 40
_HUES = {  # of the picture of `report`, which are darker than a dark page
    "#1c2833": "ink", "#2471a3": "blue", "#c0392b": "red", "#1e8449": "green", "#b9770e": "amber", "#8e44ad": "violet",
    "#148f77": "teal", "#117a65": "teal", "#616a6b": "grey",
}
_OF_RANKS = ("blue", "red", "green", "amber", "violet", "teal", "ink", "grey")  # a line each, if there are no more
_RATES = {"images_per_second": "images per second", "data_wait_share": "share of the time waiting for data"}


class Watched:
    """One run's folder, looked at again and again."""

    def __init__(self, path: Path, read_settings: Callable[[], Mapping[str, Any]]) -> None:
        """`read_settings` gives its recipe's as they are now, or none; asked when something has happened to the run."""
        self.folder = RunFolder(path)
        self._read_settings, self._settings = read_settings, read_settings()
        self._of_events, self._of_metrics = (
            GrowingLog(path, key) for path, key in ((self.folder.events, "kind"), (self.folder.metrics, "step"))
        )
        self._of_ranks = GrowingLog(self.folder.ranks, "step")
        self._events: list[Event] = []
        self._history: list[Event] = []
        self._curves = Curves()
        self._ranks = RankTimes()

    def view(self) -> dict[str, Any]:
        """JSON values, numbers finite; {"error": str} beside the name where a log is damaged."""
        about = {"name": self.folder.path.name or str(self.folder.path), "path": str(self.folder.path)}
        try:
            self._follow()
            return about | self._described()
        except UserError as error:
            return about | {"error": str(error)}

    def samples(self) -> list[str]:
        """Names of its sheets of samples, the newest last: a run may go on after its final picture."""
        return [path.name for path in sorted(self.folder.samples.glob("[!.]*.png"), key=_age)]

    def _follow(self) -> None:
        """Each log is done with before the next is read, which may be damaged."""
        begins, events = self._of_events.new_rows()
        self._events = [*([] if begins else self._events), *events]
        if begins or events:
            self._history, self._settings = history(self._events), self._read_settings()
        begins, rows = self._of_metrics.new_rows()
        self._curves = Curves() if begins else self._curves
        for row in rows:
            self._curves.add(row)
        begins, looks = self._of_ranks.new_rows()
        self._ranks = RankTimes() if begins else self._ranks
        for look in looks:
            self._ranks.add(look)

    def _described(self) -> dict[str, Any]:
        events, curves = self._history, self._curves.found()
        quality = at(self._settings, "pilot", "quality")
        steps = at(self._settings, "loop", "steps")
        total = steps if type(steps) is int else None
        told = course(events, curves, quality if isinstance(quality, str) else None)
        starts = [event for event in events if event["kind"] == "start"]
        return {
            "standing": asdict(standing_of(self.folder, events, total)), "step": told.last, "steps": total,
            "started": str(starts[-1].get("time", "")) if starts else "", "starts": len(starts),
            "images_seen": _last(curves.get("images_seen")), "rate": _last(curves.get("images_per_second")),
            "seconds_per_step": _last(curves.get("seconds_per_step")), "quality": told.quality,
            "phases": list(_phases(told)), "acts": _acts(events), "panels": [*_panels(told), *self._ranks.panels()],
            "marks": [asdict(mark) for mark in told.marks[-_LAST_ACTS:]], "samples": self.samples()[-1:],
            "ranks": _ranks(self.folder, starts[-1] if starts else {}, self._ranks),
        }


def _age(path: Path) -> tuple[float, str]:
    """Sorts files by when they were written; one that has just gone comes first."""
    try:
        return path.stat().st_mtime, path.name
    except OSError:
        return 0.0, path.name


def at(mapping: Any, *keys: str) -> Any:
    """The value under these keys; None where there is none."""
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def _panels(told: Course) -> Iterator[dict[str, Any]]:
    rates = [
        Panel(title, [Line(title, told.curves[name], "#2471a3")], from_zero=True)
        for name, title in _RATES.items() if name in told.curves
    ]
    for panel in [*panels_of(told), *rates]:
        lines = [line for line in panel.lines if np.isfinite(line.curve.values).any()]
        if not lines:
            continue
        values = np.concatenate([drawable(line.curve) for line in lines])
        yield {
            "title": panel.title, "log": bool(is_log(panel, values[np.isfinite(values)])), "dots": panel.dots,
            "from_zero": panel.from_zero, "lines": [_line(line) for line in lines],
        }


def _line(line: Line) -> dict[str, Any]:
    steps, means, least, largest = (_plain(part) for part in thinned(line.curve, MOST_POINTS))
    found = {
        "label": line.label, "hue": _HUES.get(line.color, "grey"), "dashed": line.style != "-", "steps": steps,
        "values": means, "newest": _last(line.curve),
    }
    return found if len(line.curve.steps) <= MOST_POINTS else found | {"least": least, "largest": largest}


def _plain(values: Array) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _last(curve: Curve | None) -> float | None:
    value = curve.values[-1] if curve is not None and curve.steps else math.nan
    return value if math.isfinite(value) else None


def _phases(told: Course) -> Iterator[dict[str, Any]]:
    for span in told.spans:
        yield {
            "name": span.name, "first": span.first, "last": span.last, "why": span.why,
            "quality": asdict(quality_of(told, span)), "acts": dict(span.acts), "rules": dict(span.rules),
        }


def _acts(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The newest first, each with all that was noted of it."""
    kinds = ("act", "rule", "trial", "signal", "settings", "torn", "divergence", "inconsistency", "failed", "straggler",
             "elastic")
    found = [event for event in events if event["kind"] in kinds]
    return [
        {
            "step": event.get("step"), "time": str(event.get("time", "")), "kind": event["kind"],
            "what": "; ".join(
                f"{key}: {str(value)[:300]}" for key, value in event.items() if key not in ("time", "kind", "step")
            ),
        }
        for event in reversed(found[-_LAST_ACTS:])
    ]


class RankTimes:
    """What `hooks.stragglers` has written: each rank's own seconds in a step, and who is slow."""

    def __init__(self) -> None:
        self._curves = Curves()
        self._newest: Mapping[str, Any] = {}

    def add(self, look: Mapping[str, Any]) -> None:
        """A line of RUN/ranks.jsonl; raises DataError for one without numbers by rank."""
        own = look.get("own")
        if not isinstance(own, list):
            raise DataError(f"ranks.jsonl, step {look['step']}: it has no times by rank; restore or remove the file")
        self._curves.add({"step": look["step"]} | {f"rank {rank}": value for rank, value in enumerate(own)})
        self._newest = look

    def panels(self) -> Iterator[dict[str, Any]]:
        curves = self._curves.found()
        if not 2 <= len(curves) <= len(_OF_RANKS):  # of many ranks the table tells enough
            return
        lines = [
            _line(Line(name, curve, "")) | {"hue": hue}
            for (name, curve), hue in zip(curves.items(), _OF_RANKS, strict=False)
        ]
        yield {"title": "seconds of a rank's own in a step", "log": False, "dots": False, "from_zero": True,
               "lines": lines}

    def of_ranks(self) -> dict[int, dict[str, Any]]:
        """By the newest look: seconds of its own in a step, of which it waited for data, and whether it is slow."""
        data, slow = (self._newest.get(key) for key in ("data", "slow"))
        return {
            rank: {
                "own": value, "data": data[rank] if isinstance(data, list) and rank < len(data) else None,
                "slow": isinstance(slow, list) and rank in slow,
            }
            for rank, value in enumerate(self._newest.get("own", ()))
        }


def _ranks(folder: RunFolder, start: Event, times: RankTimes) -> dict[str, Any]:
    """How many there are, the newest times of each, and the last words of those that wrote some."""
    found = times.of_ranks()
    logs = {}
    for path in rank_logs(folder):
        digits = path.stem.rpartition("_")[2]
        if digits.isdecimal():
            logs[int(digits)] = first_line(path)[:500]
    return {
        "number": start.get("world_size"), "plan": at(start, "plan", "plan"),
        "rows": [
            {"rank": rank, "own": None, "data": None, "slow": False, "log": logs.get(rank, "")} | found.get(rank, {})
            for rank in sorted(found.keys() | logs.keys())
        ],
    }
