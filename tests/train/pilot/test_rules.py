"""Each rule holds where it is meant to, at the edge of its numbers, and says why; it is silent without its signals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from afm_scale.core.typed import build
from afm_scale.train.pilot.memory import Memory, Point
from afm_scale.train.pilot.rules import (
    COST,
    FAKE,
    GRADIENT,
    REAL,
    CollapseConfig,
    IdentityConfig,
    RiseConfig,
    RulesConfig,
    StallConfig,
    collapse,
    divergence,
    fired,
    identity,
    last_good,
    stall,
)

from .small import QUALITY, point

RECORDED = Path(__file__).parent / "recorded"
STALL = StallConfig(patience=2, least_improvement=0.1, gradient_falls_to=0.5, gap_grows_to=1.5)


def points(*values: tuple[float, float, float]) -> list[Point]:
    """Of quality, gradient and gap."""
    return [
        point(10 * number, quality, **{GRADIENT: gradient**2, REAL: gap / 2, FAKE: -gap / 2})
        for number, (quality, gradient, gap) in enumerate(values, start=1)
    ]


HEALTHY = [(5.0, 1.0, 1.0), (4.0, 1.0, 1.0), (3.0, 1.0, 1.0)]


def test_a_stall_is_flat_quality_with_a_gradient_that_decays_while_the_gap_grows() -> None:
    evidence = stall(STALL, points(*HEALTHY, (3.0, 0.9, 1.1), (3.0, 0.4, 1.6)), QUALITY)
    assert evidence == pytest.approx(
        {"gradient": 0.4, "largest_gradient": 1.0, "gap": 1.6, "usual_gap": 1.0, "largest_gap": 1.6}
    )


def test_a_stall_is_flat_quality_with_logits_that_have_come_together() -> None:
    assert stall(STALL, points(*HEALTHY, (3.0, 1.0, 0.09), (3.0, 1.0, -0.1)), QUALITY) is not None
    assert stall(STALL, points(*HEALTHY, (3.0, 1.0, 0.3), (3.0, 1.0, -0.05)), QUALITY) is None  # their median is 0.125
    assert stall(STALL, points(*HEALTHY, (2.0, 1.0, 0.05), (1.0, 1.0, 0.05)), QUALITY) is None  # it still improves
    assert stall(STALL, points(*HEALTHY, (3.0, 0.6, 0.05), (3.0, 0.6, 0.05)), QUALITY) is None  # it has converged


@pytest.mark.parametrize(
    "newest",
    [(2.0, 0.4, 1.6), (3.0, 0.6, 1.6), (3.0, 0.4, 1.4)],
    ids=["quality improves", "the gradient is there", "the gap is as ever"],
)
def test_a_stall_needs_all_of_its_signs(newest: tuple[float, float, float]) -> None:
    assert stall(STALL, points(*HEALTHY, (3.0, 0.9, 1.1), newest), QUALITY) is None


def test_a_stall_is_not_looked_for_where_no_discriminator_speaks() -> None:
    flat = [point(10 * number, 3.0) for number in range(1, 6)]
    assert stall(STALL, flat, QUALITY) is None


def test_identity_is_a_small_cost_and_the_quality_of_noise() -> None:
    config = IdentityConfig(cost_below=0.05, quality_above=0.5)
    assert identity(config, point(10, 40.0, **{COST: 0.01}), QUALITY, 60.0) is not None
    assert identity(config, point(10, 20.0, **{COST: 0.01}), QUALITY, 60.0) is None  # good samples near their noise
    assert identity(config, point(10, 40.0, **{COST: 0.2}), QUALITY, 60.0) is None  # bad samples far from it
    assert identity(config, point(10, 40.0), QUALITY, 60.0) is None
    assert identity(config, point(10, 40.0, **{COST: 0.01}), QUALITY, None) is None


def test_a_divergence_is_quality_that_is_so_much_worse_or_no_number_so_often() -> None:
    config = RiseConfig(times=3.0, patience=2)

    def holds(*qualities: float | None) -> bool:
        history = [point(10 * number, quality) for number, quality in enumerate(qualities, start=1)]
        return divergence(config, history, QUALITY, None) is not None

    assert holds(2.0, 7.0, 7.0) and holds(2.0, None, 7.0)
    assert not holds(2.0, 7.0, 5.9)  # once better than three times
    assert not holds(2.0, 1.0, 7.0)  # once is no rule
    assert not holds(7.0, 7.0) and not holds(None, None, None)
    found = divergence(config, [point(1, 2.0), point(2, None), point(3, None)], QUALITY, None)
    assert found == {"quality": math.inf, "best": 2.0, "limit": 6.0}


def test_where_noise_is_near_a_divergence_is_half_of_the_gain_that_is_lost() -> None:
    config = RiseConfig(times=3.0, loses=0.5, patience=2)
    history = [point(10, 15.0), point(20, 31.0), point(30, 30.1)]
    assert divergence(config, history, QUALITY, 45.0) == {"quality": 30.1, "best": 15.0, "limit": 30.0}
    assert divergence(config, history, QUALITY, 46.0) is None
    assert divergence(config, history, QUALITY, None) is None
    assert divergence(config, history, QUALITY, 10.0) is None  # it was never better than noise


def test_the_last_good_evaluation_is_near_the_best_and_not_on_the_way_to_a_divergence() -> None:
    config = RiseConfig(times=3.0, loses=0.5, patience=2)

    def good(*qualities: float | None, of_noise: float | None = None) -> int:
        return last_good(config, [point(10 * n, q) for n, q in enumerate(qualities, start=1)], QUALITY, of_noise)

    assert good(2.0, 2.9, 7.0, 7.0) == 20
    assert good(2.0, 3.1, 7.0, 7.0) == 10
    assert good(2.0, 2.9, None, 5.9, None, None) == 20
    assert good(15.65, 17.17, 24.02, 29.93, 33.97, 31.5, of_noise=45.0) == 20  # digits, D at thirty times the rate


def spread(*values: float) -> list[Point]:
    return [
        Point(step=number, images_seen=0, figures={"diversity": value}, signals={}, phase=0)
        for number, value in enumerate(values)
    ]


def test_a_collapse_is_diversity_that_has_fallen_to_a_share_of_its_most() -> None:
    config = CollapseConfig(falls_to=0.5, patience=2)

    def holds(*values: float) -> bool:
        return collapse(config, spread(*values), "diversity") is not None

    assert holds(0.8, 0.3, 0.39)
    assert not holds(0.8, 0.3, 0.41) and not holds(0.8, 0.9, 0.3) and not holds(0.1, 0.1)


def test_a_collapse_is_also_diversity_that_never_comes() -> None:
    def holds(*values: float) -> bool:
        return collapse(CollapseConfig(floor=0.1, after=4, patience=2), spread(*values), "diversity") is not None

    assert holds(0.03, 0.02, 0.03, 0.03, 0.04, 0.03)
    assert not holds(0.03, 0.02, 0.03, 0.03, 0.04)  # it may be at its beginning
    assert not holds(0.03, 0.02, 0.03, 0.03, 0.04, 0.11)


def test_a_rule_that_is_off_never_holds() -> None:
    history = tuple(points(*HEALTHY, (3.0, 0.9, 1.1), (30.0, 0.4, 1.6), (30.0, 0.4, 1.6)))
    memory = Memory(points=history, is_pending=True)
    rules = RulesConfig(stall=STALL, divergence=RiseConfig())
    assert set(fired(rules, memory, quality=QUALITY, diversity=None)) == {"stall", "divergence"}
    assert set(fired(RulesConfig(stall=STALL, divergence=None), memory, quality=QUALITY, diversity=None)) == {"stall"}


def fired_in(name: str, quality: str) -> dict[str, int]:
    """The rules that held at some evaluation of a recorded run (record.py), and the step of the first that each did."""
    recorded = build(Memory, json.loads((RECORDED / f"{name}.json").read_text()))
    first: dict[str, int] = {}
    for count in range(1, len(recorded.points) + 1):
        memory = replace(recorded, points=recorded.points[:count])
        for rule in fired(RulesConfig(), memory, quality=quality, diversity="diversity"):
            first.setdefault(rule, memory.points[-1].step)
    return first


@pytest.mark.parametrize(
    ("name", "quality", "rules"),
    [
        ("mixture_good", "w1", {}),
        ("mixture_weight_20", "w1", {"identity": 200}),
        ("digits_frozen_generator", "frechet_distance", {"stall": 500, "collapse": 600}),
    ],
)
def test_recorded_runs_are_told_by_the_rule_of_their_fault(name: str, quality: str, rules: dict[str, int]) -> None:
    assert fired_in(name, quality) == rules
