"""One picture of a run's course: its curves above each other on one axis of steps, phases shaded, acts as lines."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..core.files import write_atomically
from ..core.screen import in_plain_letters
from .course import Course, Mark, Span, rises
from .course_panels import INK, MOST_POINTS, Panel, drawable, is_log, panels_of, thinned

MOST_LINES = 40  # of one kind through all panels: of more, the marks alone

_GREY, _FAINT = "#7f8c8d", "#ccd1d1"
_TINTS = ("#eaf2f8", "#fdf2e9", "#e9f7ef", "#f4ecf7")

_WORDS = {
    ("act", "reload_discriminator"): ("reload D", "#8e44ad"),
    ("act", "average_into_generator"): ("average into G", "#148f77"),
    ("act", "advance_phase"): ("next phase", "#566573"),
    ("act", "roll_back"): ("roll back", "#d35400"),
    ("act", "skip"): ("skip", "#b7950b"),
    ("act", "stop"): ("stop", "#1c2833"),
    ("trial", "trial"): ("trial", "#6c3483"),
}
_SHAPES = {"act": "o", "trial": "D", "rule": "v", "restart": "|", "divergence": "X", "inconsistency": "X"}
_TROUBLE = "#cb4335"
_ORDER = ("rule", "divergence", "inconsistency", "trial", "act", "restart", "signal", "settings")


def draw_course(path: Path, course: Course, *, title: str) -> None:
    """Draws a PNG. Raises UserError if it cannot be written."""
    shown, marks = panels_of(course), _rows_of(course.marks)
    strip = [0.35 + 0.2 * len(marks)] if marks else []
    heights = [*strip, *(1.9 if panel.dots else 1.45 for panel in shown)]
    figure = Figure(figsize=(12.0, sum(heights) + 1.0), layout="constrained")
    figure.get_layout_engine().set(hspace=0.0, h_pad=0.05)
    axes: list[Axes] = list(
        figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    )
    first, last = course.first, max(course.last, course.first + 1)
    margin = 0.012 * (last - first)
    axes[-1].set_xlim(first - margin, last + margin)
    for own in axes:
        own.spines[["top", "right"]].set_visible(False)
        own.spines[["left", "bottom"]].set_color(_GREY)
        own.tick_params(colors=INK, labelsize=8, color=_GREY)
        own.tick_params(axis="x", labelbottom=own is axes[-1])
        _shade(own, course.spans)
        _strike(own, marks)
    if marks:
        _draw_marks(axes[0], marks, steps_per_inch=(last - first) / 8.6)
    for own, panel in zip(axes[len(strip):], shown, strict=True):
        _draw_panel(own, panel, course)
    _name_phases(axes[0], course.spans, steps_per_inch=(last - first) / 8.6)
    axes[-1].set_xlabel("step: updates of the player that learns", fontsize=9, color=INK)
    axes[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    figure.suptitle(_plain(title), fontsize=11, color=INK, x=0.01, ha="left", parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a phase's name, in letters that the font lacks
        write_atomically(path, lambda file: figure.savefig(file, dpi=130, format="png"))


def _draw_panel(axes: Axes, panel: Panel, course: Course) -> None:
    drawn = [line for line in panel.lines if np.isfinite(line.curve.values).any()]
    values = np.concatenate([drawable(line.curve) for line in drawn])
    on_log = is_log(panel, values[np.isfinite(values)])
    axes.set_yscale("log" if on_log else "linear")
    for line in drawn:
        steps, means, least, largest = thinned(line.curve)
        is_long = len(line.curve.steps) > MOST_POINTS
        if is_long:
            axes.fill_between(steps, least, largest, color=line.color, alpha=0.15, linewidth=0)
        axes.plot(
            steps, means, line.style, color=line.color, linewidth=1.0 if is_long else 1.2, label=line.label,
            marker="o" if panel.dots or len(steps) == 1 else None, markersize=2.8,
        )
        lost = steps[~np.isfinite(means)]
        if len(lost):
            axes.plot(
                lost, np.zeros(len(lost)), "x", color=_TROUBLE, markersize=4, transform=axes.get_xaxis_transform(),
                clip_on=False, label=f"{line.label}: not finite",
            )
    if panel.dots and course.quality is not None and drawn[0].curve is course.figures[course.quality]:
        _ring_best(axes, course)
    elif not on_log and panel.title == "logits of D":
        axes.axhline(0, color=_GREY, linewidth=0.6, zorder=1)
    axes.set_ylabel(_plain(panel.title), fontsize=9, color=INK, parse_math=False)
    axes.grid(axis="y", color=_FAINT, linewidth=0.5)
    if on_log:
        _tick_log(axes)
    elif panel.from_zero:
        axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False, labelcolor=INK, borderaxespad=0.2
    )


def _tick_log(axes: Axes) -> None:
    """Numbers that can be read, also where the scale has less than two powers of ten."""
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _ring_best(axes: Axes, course: Course) -> None:
    assert course.quality is not None
    curve = course.figures[course.quality]
    points = [(v, s) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    value, step = (max if rises(course.quality) else min)(points)
    axes.plot(
        step, value, "o", color=_TROUBLE, markersize=7, markerfacecolor="none", linestyle="none",
        label=f"best: {value:.4g} at {step:,}",
    )


def _shade(axes: Axes, spans: Sequence[Span]) -> None:
    for number, span in enumerate(spans):
        if span.name:
            axes.axvspan(span.first, span.last, color=_TINTS[number % len(_TINTS)], linewidth=0, zorder=0)
            if number:
                axes.axvline(span.first, color=_GREY, linewidth=0.8, zorder=1)


def _name_phases(axes: Axes, spans: Sequence[Span], steps_per_inch: float) -> None:
    """Above the picture, as much of a name as its phase has room for."""
    for number, span in enumerate(spans):
        room = int(span.updates / steps_per_inch / 0.085) if span.name else 0
        name = _plain(span.name)
        text = name if len(name) <= room else name[:room - 1] + "…" if room >= 4 else str(number + 1) if room else ""
        axes.text(
            (span.first + span.last) / 2, 1.02, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
            fontsize=9, color=INK, parse_math=False,
        )


_Rows = dict[tuple[str, str, str], list[Mark]]
"""Marks by (kind, words, color), in the order in which they stand."""


def _rows_of(marks: Sequence[Mark]) -> _Rows:
    """The next phase is not among them: the shades show it."""
    rows: _Rows = {}
    for mark in sorted(marks, key=lambda mark: _ORDER.index(mark.kind)):
        if (mark.kind, mark.name) != ("act", "advance_phase"):
            rows.setdefault((mark.kind, *_said(mark)), []).append(mark)
    return rows


def _said(mark: Mark) -> tuple[str, str]:
    """(words, color)."""
    words = f"rule: {mark.name}" if mark.kind == "rule" else _words(mark.name)
    is_trouble = mark.kind in ("rule", "divergence", "inconsistency")
    return _WORDS.get((mark.kind, mark.name), (words, _TROUBLE if is_trouble else "#566573"))


def _strike(axes: Axes, rows: _Rows) -> None:
    for (kind, _, color), marks in rows.items():
        if kind in ("act", "divergence") and len(marks) <= MOST_LINES:
            for mark in marks:
                axes.axvline(mark.step, color=color, linewidth=0.9, alpha=0.75, zorder=1)


def _draw_marks(axes: Axes, rows: _Rows, steps_per_inch: float) -> None:
    """A row for each kind: its words on the left, a mark at each step, and what it led to where there is room."""
    for height, ((kind, _, color), marks) in enumerate(rows.items()):
        steps = [mark.step for mark in marks]
        axes.plot(steps, [height] * len(steps), _SHAPES.get(kind, "."), color=color, markersize=5, linestyle="none")
        left, right = axes.get_xlim()
        for mark, before, after in zip(marks, [left, *steps], [*steps[1:], right], strict=False):
            needed = steps_per_inch * 0.09 * (len(mark.note) + 4)
            goes_right = after - mark.step > needed
            if mark.note and (goes_right or mark.step - before > 2 * needed):
                axes.annotate(
                    f"→ {mark.note}", (mark.step, height), xytext=(5 if goes_right else -5, 0), fontsize=7,
                    textcoords="offset points", va="center", ha="left" if goes_right else "right", color=color,
                )
    axes.set_yticks(range(len(rows)), [_plain(words) for _, words, _ in rows])
    for label, (_, _, color) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(color=color, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(text: str) -> str:
    """For text that a user has written."""
    return in_plain_letters(text.encode(errors="backslashreplace").decode())
