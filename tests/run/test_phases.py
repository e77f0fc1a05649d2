"""Phases of a recipe: laid over it, with schedules of their own, refused with the setting that would do."""

from __future__ import annotations

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.core.types import Role
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.guides import check_frozen
from afm_scale.run.load import load
from afm_scale.run.phases import build_phases

COSINE = "{kind: cosine, start: 0.1, end: 0.0, steps: 10}"


def recipe(*phases: str, words: tuple[str, ...] = ()) -> RunConfig:
    config = load(RunConfig, "digits_afm", [f"pilot={{phases: [{', '.join(phases)}]}}", *words])
    check(config, 1)
    return config


def test_a_phase_is_laid_over_the_recipe_with_schedules_that_count_from_its_first_update() -> None:
    config = recipe(
        "{name: a, until: {updates: 5}}",
        f"{{name: b, objective: {{transport_weight: {COSINE}, penalty: {{weight: 1.0}}}}, "
        "learning_rate: {generator: 1e-5}}",
    )
    first, second = (phase.from_step(100) for phase in build_phases(config))
    assert first.objective == config.objective.resolved("fp32")
    assert first.learning_rates[Role.GENERATOR] == config.optimizer.generator.learning_rate  # of the run's steps
    assert second.objective.transport_weight(99) == second.objective.transport_weight(100 - 50) == 0.1
    assert 0 < second.objective.transport_weight(105) < 0.1
    assert second.objective.transport_weight(110) == 0.0
    assert second.objective.penalty.weight == 1.0
    assert second.objective.penalty.share == config.objective.penalty.share  # laid over, not in its place
    assert second.learning_rates[Role.GENERATOR](0) == 1e-5
    assert second.learning_rates[Role.DISCRIMINATOR] == config.optimizer.discriminator.learning_rate


def test_a_guide_may_be_there_for_one_phase_alone() -> None:
    guided = "objective: {guidance: {kind: plain, weight: 0.1, low: 0.0, high: 1.0}}"
    words = ("model.classifier={kind: dit, patch_size: 4, hidden_size: 16, depth: 2, num_heads: 2}",)
    config = recipe("{name: a, until: {updates: 5}}", f"{{name: b, {guided}}}", words=words)
    with pytest.raises(ConfigError, match=r"model\.classifier\.weights is null"):  # it is looked for
        check_frozen(config)
    with pytest.raises(ConfigError, match="model.classifier is described, but no phase asks it"):
        recipe("{name: a}", words=words)
    with pytest.raises(ConfigError, match="asks a frozen classifier|needs a classifier"):
        recipe(f"{{name: a, {guided}}}")


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        (("{name: a}", "{name: b}"), r"pilot\.phases\[0\]\.until says nothing, so phase 'a' never ends and 'b' never"),
        (("{name: a, until: {updates: 1}}", "{name: a}"), r"pilot\.phases\[1\]\.name 'a' is that of an earlier phase"),
        (("{name: a, until: {epochs: 2}}",), r"until\.epochs needs pilot\.images_per_epoch"),
        (("{name: a, until: {plateau: {}}}",), r"until\.plateau acts on evaluations, and there are none"),
        (("{name: a, average_into_generator: every_evaluation}",), r"average_into_generator acts on evaluations"),
        (("{name: a, learning_rate: {classifier: 1e-4}}",), r"phases\[0\]\.learning_rate\.classifier: no classifier"),
        (("{name: a, objective: {transport_wieght: 1}}",),
         r"pilot\.phases\.?\[0\]\.objective\.transport_wieght: unknown key; did you mean 'transport_weight'"),
        (("{name: a, objective: {transport_weight: -1}}",), r"objective\.transport_weight: found -1, wanted"),
        (("{name: a, objective: {kind: flow_matching}}",), r"objective\.kind cannot change while a run goes on"),
        (("{name: a, objective: {gradient_scale: null}}",), r"gradient_scale cannot change while a run goes on"),
        (("{name: a, objective: {prediction: v}}",), r"prediction cannot change while a run goes on"),
        (("{name: a, until: {update: 1}}",), r"pilot\.phases\[0\]\.until\.update: unknown key; did you mean 'updates'"),
    ],
)
def test_phases_that_cannot_be_are_refused_with_what_to_do(phases: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        recipe(*phases)
