"""The course of a run: its phases, what was done to it, and its quality, from the two logs of its folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import DataError
from ..core.history import Curve, Event

_USUAL = ("frechet_distance", "fid")  # the quality, where the recipe does not name it
_RISING = ("accuracy", "precision", "recall", "inception_score")
_EVALUATION = "evaluation/"  # before the names of figures in rows of metrics
_NO_FIGURES = ("seconds", "step")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at a step."""

    step: int
    kind: str  # in the words of the log: "act", "rule", "trial", "restart", "divergence", ...
    name: str  # of which one: "reload_discriminator", "stall"
    note: str = ""  # a word or two of its outcome


@dataclass(kw_only=True)
class Span:
    """A phase, from its first step to the one at which it ended, or to the newest."""

    name: str
    first: int
    last: int = 0
    why: str = ""  # it began
    acts: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)

    @property
    def updates(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, kw_only=True)
class Course:
    """All that is drawn of a run, and told."""

    curves: Mapping[str, Curve]  # of metrics, by their names
    figures: Mapping[str, Curve]  # of evaluations
    quality: str | None  # the figure that says how good the run is; None: there are no evaluations
    spans: Sequence[Span]  # at least one; one without a name is a part that no phase was noted of
    marks: Sequence[Mark]

    @property
    def first(self) -> int:
        return self.spans[0].first

    @property
    def last(self) -> int:
        return self.spans[-1].last


@dataclass(frozen=True, kw_only=True)
class QualityOf:
    """The quality measure in a span; None: it was not measured, or was not finite."""

    begin: float | None  # the newest figure when it began, else its own first
    best: float | None
    best_step: int | None
    end: float | None


def course(events: Sequence[Event], curves: Mapping[str, Curve], quality: str | None = None) -> Course:
    """What the logs come to.

    Args:
        events: as the run finally went (`core.history.history`).
        quality: a figure's name; if there is none of it, or None is given, a Frechet distance is taken or else the
            first figure.

    Raises DataError for figures that are no numbers.
    """
    figures = _figures(events) or _figures_of_rows(curves)
    chosen = next((name for name in (quality, *_USUAL, *figures) if name in figures), None)
    of_metrics = {name: curve for name, curve in curves.items() if not name.startswith(_EVALUATION)}
    steps = [event["step"] for event in events if "step" in event]
    steps += [curve.steps[-1] for curve in (*of_metrics.values(), *figures.values()) if curve.steps]
    return Course(
        curves=of_metrics, figures=figures, quality=chosen, marks=tuple(_marks(events)),
        spans=_spans(events, last=max(steps, default=0)),
    )


def rises(figure: str) -> bool:
    """Whether more of a figure is better."""
    return figure.startswith(_RISING)


def quality_of(course: Course, span: Span) -> QualityOf:
    """Of the evaluations after a span's first step: that of the first step itself was before it."""
    curve = course.figures[course.quality] if course.quality is not None else Curve()
    points = [(step, value) for step, value in zip(curve.steps, curve.values, strict=True) if step <= span.last]
    before = [value for step, value in points if step <= span.first]
    inside = [(step, value) for step, value in points if step > span.first]
    better = max if course.quality is not None and rises(course.quality) else min
    finite = [(step, value) for step, value in inside if math.isfinite(value)]
    best_step, best = better(finite, key=lambda point: point[1], default=(None, None))
    begin = before[-1] if before else inside[0][1] if inside else None
    return QualityOf(
        begin=_or_none(begin), best=best, best_step=best_step, end=_or_none(inside[-1][1] if inside else None)
    )


def _or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _figures(events: Sequence[Event]) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for event in events:
        if event["kind"] == "evaluation" and "step" in event:
            figures = event.get("figures", {})
            if not isinstance(figures, Mapping):
                raise DataError(f"the evaluation of step {event['step']} has no figures by name; restore the events")
            for name, value in figures.items():
                try:
                    found.setdefault(name, Curve()).add(event["step"], value)
                except ValueError as error:
                    raise DataError(f"the evaluation of step {event['step']}: {name}: {error}; restore the events") \
                        from error
    return found


def _figures_of_rows(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """For a run whose events are lost."""
    named = {name.removeprefix(_EVALUATION): curve for name, curve in curves.items() if name.startswith(_EVALUATION)}
    return {name: curve for name, curve in named.items() if name not in _NO_FIGURES}


def _spans(events: Sequence[Event], last: int) -> list[Span]:
    """What happened at the step where two phases meet belongs to the one that was going on as it was noted."""
    starts = [event["step"] for event in events if event["kind"] == "start" and "step" in event]
    spans = [Span(name="", first=min(starts, default=0))]
    for event in events:
        if event["kind"] == "phase" and "step" in event:
            spans[-1].last = event["step"]
            spans.append(Span(name=str(event.get("phase")), first=event["step"], why=str(event.get("why", ""))))
        elif event["kind"] == "act":
            spans[-1].acts[str(event.get("act"))] += 1
        elif event["kind"] == "rule":
            spans[-1].rules[str(event.get("rule"))] += 1
    spans[-1].last = last
    is_idle = len(spans) > 1 and spans[0].updates <= 0 and not spans[0].acts and not spans[0].rules
    return spans[1:] if is_idle else spans


def _marks(events: Sequence[Event]) -> Iterator[Mark]:
    has_started = False
    for event in events:
        kind, step = event["kind"], event.get("step")
        if step is None:
            continue
        if kind == "act":
            yield Mark(step=step, kind="act", name=str(event.get("act")), note=_led_to(event, "to"))
        elif kind == "rule":
            yield Mark(step=step, kind="rule", name=str(event.get("rule")))
        elif kind == "trial":
            yield Mark(step=step, kind="trial", name="trial", note=_led_to(event, "chosen") or "none")
        elif kind == "start":
            if has_started:
                yield Mark(step=step, kind="restart", name="restart")
            has_started = True
        elif kind in ("divergence", "inconsistency", "settings", "signal"):
            yield Mark(step=step, kind=kind, name=kind)


def _led_to(event: Event, key: str) -> str:
    step: Any = event.get(key)
    return f"{step:,}" if type(step) is int else ""
