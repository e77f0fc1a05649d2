"""The course of a run, from logs whose figures are known, and what is drawn of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from afm_scale.core.errors import DataError
from afm_scale.core.history import Curve, curves
from afm_scale.evaluation.course import QualityOf, course, quality_of
from afm_scale.evaluation.course_panels import MOST_POINTS, gap_of, panels_of, thinned
from afm_scale.evaluation.course_picture import draw_course


def phase(step: int, name: str) -> dict[str, Any]:
    return {"kind": "phase", "step": step, "phase": name, "index": 0, "why": "so"}


def figures(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "figures": values}


def act(step: int, name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "act", "step": step, "act": name, **more}


TWO_PHASES = [
    {"kind": "start", "step": 0}, phase(0, "a"), figures(10, fid=9.0), figures(20, fid=5.0), figures(30, fid=6.0),
    act(30, "average_into_generator"), act(30, "advance_phase"), phase(30, "b"),
    {"kind": "rule", "step": 40, "rule": "stall"}, act(40, "reload_discriminator"), figures(40, fid=float("nan")),
    act(40, "reload_discriminator"), figures(50, fid=2.0), figures(60, fid=4.0),
]


def curve_of(*points: tuple[int, float]) -> Curve:
    made = Curve()
    for step, value in points:
        made.add(step, value)
    return made


def test_phases_have_their_updates_their_quality_and_what_was_done_in_them() -> None:
    told = course(TWO_PHASES, curves([{"step": 70, "generator/total": 1.0}]))
    a, b = told.spans
    assert [(span.name, span.first, span.last) for span in (a, b)] == [("a", 0, 30), ("b", 30, 70)]
    assert (a.updates, b.updates) == (30, 40)
    assert quality_of(told, a) == QualityOf(begin=9.0, best=5.0, best_step=20, end=6.0)
    assert quality_of(told, b) == QualityOf(begin=6.0, best=2.0, best_step=50, end=4.0)
    # What was done where they meet was done by the one that ended.
    assert a.acts == {"average_into_generator": 1, "advance_phase": 1} and a.rules == {}
    assert b.acts == {"reload_discriminator": 2} and b.rules == {"stall": 1}


def test_a_phase_that_has_not_been_evaluated_has_the_quality_it_began_with() -> None:
    told = course([*TWO_PHASES, phase(60, "c")], curves([{"step": 65, "x": 1}]))
    assert quality_of(told, told.spans[-1]) == QualityOf(begin=4.0, best=None, best_step=None, end=None)


def test_a_run_without_phases_is_one_span_and_one_that_got_them_later_has_a_part_before() -> None:
    told = course([{"kind": "start", "step": 5}, figures(20, fid=1.0)], {})
    assert [(span.name, span.first, span.last) for span in told.spans] == [("", 5, 20)]
    starts = [{"kind": "start", "step": step} for step in (0, 20)]
    told = course([*starts, phase(20, "a"), figures(30, fid=1.0)], {})
    assert [(span.name, span.first, span.last) for span in told.spans] == [("", 0, 20), ("a", 20, 30)]


@pytest.mark.parametrize("named, there, chosen", [
    ("recall", ("precision", "recall", "frechet_distance"), "recall"),
    (None, ("precision", "recall", "frechet_distance"), "frechet_distance"),
    ("not there", ("precision", "fid"), "fid"), (None, ("accuracy", "accuracy_t0"), "accuracy"), (None, (), None),
])
def test_the_quality_is_what_the_recipe_names_or_a_frechet_distance_or_the_first(
    named: str | None, there: tuple[str, ...], chosen: str | None
) -> None:
    assert course([figures(10, **dict.fromkeys(there, 1.0))], {}, named).quality == chosen


def test_of_what_is_better_when_it_is_more_the_best_is_the_largest() -> None:
    told = course([figures(10, accuracy=0.2), figures(20, accuracy=0.9), figures(30, accuracy=0.8)], {})
    assert quality_of(told, told.spans[0]) == QualityOf(begin=0.2, best=0.9, best_step=20, end=0.8)


def test_without_events_the_figures_are_those_of_the_rows() -> None:
    told = course([], curves([{"step": 10, "evaluation/fid": 3.0, "evaluation/seconds": 1.0, "generator/total": 1}]))
    assert told.figures.keys() == {"fid"} and told.quality == "fid" and told.curves.keys() == {"generator/total"}


@pytest.mark.parametrize("bad", [{"fid": "9"}, [9], "9"])
def test_figures_that_are_no_numbers_are_told_with_their_step(bad: Any) -> None:
    with pytest.raises(DataError, match="the evaluation of step 10"):
        course([{"kind": "evaluation", "step": 10, "figures": bad}], {})


def test_the_gap_is_the_difference_at_common_steps() -> None:
    gap = gap_of(curve_of((1, 3.0), (2, 5.0), (4, 1.0)), curve_of((2, 2.0), (3, 1.0), (4, 1.5)))
    assert list(gap.steps) == [2, 4] and list(gap.values) == [3.0, -0.5]


def test_a_long_curve_is_thinned_to_means_with_their_range_and_gaps_stay() -> None:
    values = np.arange(100_000) % 10.0
    values[50_000] = math.nan
    curve = Curve()
    for step, value in enumerate(values.tolist()):
        curve.add(step, value)
    steps, means, least, largest = thinned(curve, most=1_000)
    assert len(steps) == 1_000 and np.isnan(means).sum() == 1 and np.isnan(means[500])
    good = np.isfinite(means)
    np.testing.assert_allclose(steps, np.arange(1_000) * 100 + 49.5)
    np.testing.assert_allclose(means[good], 4.5)
    assert (least[good] == 0).all() and (largest[good] == 9).all()
    assert all(len(part) == 10 for part in thinned(curve_of(*((step, 1.0) for step in range(10)))))


ONE_PLAYER = [{"step": step, "generator/total": 1 / step, "generator/grad_norm": 1.0, "generator/learning_rate": 1e-3}
              for step in range(10, 60, 10)]
GAME = [{**row, "discriminator/total": 1.0, "discriminator/grad_norm": None, "discriminator/learning_rate": 0.0,
         "discriminator/logit_real": 1.0, "discriminator/logit_fake": -1.0, "generator/adversarial_gradient": 1e-3,
         "generator/transport_cost": 0.5, "generator/transport": 0.1} for row in ONE_PLAYER]


def test_there_are_panels_for_what_a_run_has_and_no_others() -> None:
    def titles(events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
        return [panel.title for panel in panels_of(course(events, curves(rows)))]

    assert titles([], ONE_PLAYER) == ["loss", "gradient norm", "learning rate"]
    assert titles([figures(10, frechet_distance=1.0, recall=0.5)], []) == ["frechet distance", "recall"]
    assert titles(TWO_PHASES, GAME) == [
        "fid", "loss", "logits of D", "gradient norm", "transport cost", "learning rate"
    ]
    assert titles([], [{"step": 1, "images_seen": 8}, {"step": 2, "generator/total": None}]) == []


def many_acts() -> list[dict[str, Any]]:
    return [act(step, "average_into_generator") for step in range(0, 1000, 10)]


@pytest.mark.parametrize("events, rows", [
    ([], ONE_PLAYER), ([], ONE_PLAYER[:1]), (TWO_PHASES, GAME), (TWO_PHASES, []), (many_acts(), ONE_PLAYER),
    ([*TWO_PHASES, act(50, "roll_back", to=40), act(55, "a new kind of act"), {"kind": "divergence", "step": 58},
      {"kind": "trial", "step": 58, "chosen": None}, {"kind": "start", "step": 58}, {"kind": "signal", "step": 60},
      {"kind": "settings", "step": 58}, {"kind": "inconsistency", "step": 58}], GAME),
    ([phase(0, "$x_1^$ \n 漢 \ud800"), phase(40, "short"), phase(41, "a name that has no room")], ONE_PLAYER),
    ([figures(0, fid=0.0), figures(1, fid=0.0)], [{"step": 2**62, "generator/grad_norm": 1e308, "a/total": 1e-320}]),
    ([], [{"step": step, "generator/total": step % 7} for step in range(3 * MOST_POINTS)]),
], ids=[
    "one player", "one row", "game", "evaluations alone", "many acts", "all kinds", "odd names", "odd numbers", "long",
])
def test_a_picture_is_drawn_without_a_warning(
    events: list[dict[str, Any]], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_course(tmp_path / "x.png", course(events, curves(rows)), title="a $ run")
    height, width, _ = imread(tmp_path / "x.png").shape
    assert width == 12 * 130 and height > 130


def test_more_of_a_run_makes_a_higher_picture(tmp_path: Path) -> None:
    def height(name: str, make: Callable[[], Any]) -> int:
        draw_course(tmp_path / name, make(), title="x")
        return imread(tmp_path / name).shape[0]

    one = height("one.png", lambda: course([], curves(ONE_PLAYER)))
    assert height("game.png", lambda: course(TWO_PHASES, curves(GAME))) > one
