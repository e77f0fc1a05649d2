"""Which curves of a run's course are drawn, and in which panels: for any objective, what there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.history import Curve
from .course import Course
from .statistics import Array

INK = "#1c2833"
MOST_POINTS = 1200  # of a curve: about one for each pixel. Of longer ones, so many means with the range about them
_PLAYERS = {"generator": "#2471a3", "discriminator": "#c0392b", "classifier": "#1e8449"}
_SHARES = {"accuracy": "#1e8449", "precision": "#2471a3", "recall": "#b9770e"}
_MORE = ("#8e44ad", "#b9770e", "#117a65", "#616a6b")


@dataclass(frozen=True)
class Line:
    """A curve in a panel."""

    label: str
    curve: Curve
    color: str
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """Curves above one piece of the axis of steps."""

    title: str
    lines: Sequence[Line]
    log_from: float = math.inf  # a scale of powers of ten, if the largest value is so many times the least above 0
    dots: bool = False  # the points are few, and each was paid for
    from_zero: bool = False  # unless in powers of ten


def panels_of(course: Course) -> list[Panel]:
    """Those for which a run has something, from above."""
    curves, figures, quality = course.curves, course.figures, course.quality
    made = []
    if quality is not None:
        line = Line("of the average", figures[quality], INK)
        made.append(Panel(quality.replace("_", " "), [line], log_from=10, dots=True))
    others = [name for name in _SHARES if name in figures and name != quality]
    shares = [Line(name, figures[name], _SHARES[name]) for name in others]
    made.append(Panel(" and ".join(others), shares, dots=True, from_zero=True))
    made.append(Panel("loss", list(_of_players(curves, "total"))))
    made.append(Panel("logits of D", list(_logits(curves))))
    gradient = curves.get("generator/adversarial_gradient")
    made.append(Panel("gradient norm", [
        *_of_players(curves, "grad_norm"),
        *([] if gradient is None else [Line("D's, at G's samples", gradient, "#8e44ad")]),
    ], log_from=1))
    costs = {"transport_cost": ("mean square distance", _PLAYERS["generator"], "-"),
             "transport": ("its term of the loss", "#148f77", "--")}
    made.append(Panel("transport cost", [
        Line(label, curves[f"generator/{name}"], color, style)
        for name, (label, color, style) in costs.items() if f"generator/{name}" in curves
    ], log_from=10))
    rates = list(_of_players(curves, "learning_rate", style="--"))
    made.append(Panel("learning rate", rates, log_from=200, from_zero=True))
    return [panel for panel in made if any(np.isfinite(line.curve.values).any() for line in panel.lines)]


def is_log(panel: Panel, finite: Array) -> bool:
    """Whether these values, of all its lines and finite, are drawn on a scale of powers of ten."""
    positive = finite[finite > 0]
    return len(positive) > 0 and finite.min() >= 0 and positive.max() >= panel.log_from * positive.min()


def _of_players(curves: Mapping[str, Curve], term: str, style: str = "-") -> Iterator[Line]:
    names = [name for name in curves if name.endswith(f"/{term}") and name.count("/") == 1]
    further = iter(_MORE * len(names))
    for name in sorted(names, key=lambda name: (not name.startswith("generator/"), name)):
        player = name.partition("/")[0]
        color = _PLAYERS.get(player) or next(further)
        yield Line(player, curves[name], color, "-" if player == "generator" else style)


def _logits(curves: Mapping[str, Curve]) -> Iterator[Line]:
    for player in ("discriminator", "generator"):
        real, fake = (curves.get(f"{player}/logit_{which}") for which in ("real", "fake"))
        if real is not None and fake is not None:
            yield Line("gap: real - fake", gap_of(real, fake), INK)
            yield Line("real", real, "#1e8449")
            yield Line("fake", fake, "#b9770e")
            return


def gap_of(real: Curve, fake: Curve) -> Curve:
    """The difference, at the steps that both have."""
    theirs = dict(zip(fake.steps, fake.values, strict=True))
    gap = Curve()
    for step, value in zip(real.steps, real.values, strict=True):
        if step in theirs:
            gap.add(step, value - theirs[step])
    return gap


def thinned(curve: Curve, most: int = MOST_POINTS) -> tuple[Array, Array, Array, Array]:
    """(steps, means, least, largest), each [N] float64, N at most `most`: of even parts of a long curve.

    A part in which a value was not finite is a gap (NaN).
    """
    steps, values = np.array(curve.steps, dtype=np.float64), drawable(curve)
    if len(steps) <= most:
        return steps, values, values, values
    parts = np.linspace(0, len(steps), most + 1).astype(int)[:-1]
    sizes = np.diff(np.append(parts, len(steps)))
    return (
        np.add.reduceat(steps, parts) / sizes, np.add.reduceat(values / sizes.repeat(sizes), parts),
        np.minimum.reduceat(values, parts), np.maximum.reduceat(values, parts),
    )


def drawable(curve: Curve) -> Array:
    """[N] float64, of sizes that axes can be computed of."""
    values = np.clip(np.array(curve.values), -1e100, 1e100)
    return np.where(np.abs(values) < 1e-100, 0.0, values)
