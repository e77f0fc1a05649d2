"""What a recipe is refused for, word for word: a table of overrides and messages."""

from __future__ import annotations

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load

JUDGE = "model.discriminator={kind: mlp, width: 8}"
CLASSIFIER = "model.classifier={kind: mlp, width: 8}"
GENERATOR = "model.generator={kind: mlp, width: 8}"
FLOW_MATCHING = "objective={kind: flow_matching}"

OBJECTIVES = [
    ("digits_afm", ["model.discriminator=null"],
     "objective.kind 'afm' needs model.discriminator and optimizer.discriminator; describe both"),
    ("digits_afm", ["optimizer.discriminator=null"],
     "objective.kind 'afm' needs model.discriminator and optimizer.discriminator; describe both"),
    ("digits_afm", ["optimizer.generator=null"],
     "objective.kind 'afm' needs model.generator and optimizer.generator; describe both"),
    ("digits_flow_matching", ["model.generator=null"],
     "objective.kind 'flow_matching' needs model.generator and optimizer.generator; describe both"),
    ("classifier_digits", ["optimizer.classifier=null"],
     "objective.kind 'classification' needs model.classifier and optimizer.classifier; describe both"),
    ("digits_afm", ["objective.times={kind: grid, steps: 4}"],
     "objective.times 'grid' needs a generator that is told the time, found model.generator.times 'none'; "
     "set model.generator.times=source"),
    ("digits_afm", ["objective.times={kind: any}", "model.generator.times=source"],
     "objective.times 'any' needs a generator that is told the time, found model.generator.times 'source'; "
     "set model.generator.times=both"),
    ("digits_afm", ["objective.times={kind: any}", "model.generator.times=both"],
     "objective.times 'any' needs a discriminator that is told the target time; "
     "set model.discriminator.target_time=true"),
    ("mixture2d_flow_matching", [JUDGE],
     "objective.kind 'flow_matching' is a game of one, but the recipe has a discriminator; "
     "set model.discriminator=null"),
    ("mixture2d_flow_matching", [CLASSIFIER],
     "objective.kind 'flow_matching' has no guidance that could ask it; set model.classifier=null"),
    ("mixture2d_flow_matching", ["model.flow=runs/flow"],
     "objective.kind 'flow_matching' has no guidance that could ask it; set model.flow=null"),
    ("digits_flow_matching", ["model.generator.times=none"],
     "objective.kind 'flow_matching' needs a generator that is told the time; set model.generator.times=source"),
    ("digits_flow_matching", ["objective.class_dropout=0.1"],
     "objective.class_dropout 0.1 hides the class of some samples, which the generator cannot be told; "
     "set model.generator.null_class=true"),
    ("classifier_digits", ["model.classifier.weights=x.safetensors"],
     "model.classifier.weights is for guidance; objective.kind 'classification' trains the classifier: set it "
     "to null (run.initialise_from starts from another run's weights)"),
    ("classifier_digits", ["model.flow=runs/flow", GENERATOR, JUDGE],
     "objective.kind 'classification' trains a classifier alone; set model.generator=null model.discriminator=null "
     "model.flow=null"),
    ("classifier_digits", ["hooks.samples={every_steps: 10}"],
     "hooks.samples draws images, which a classifier has none of; set hooks.samples=null"),
    ("classifier_digits", ["report={kind: digits}"],
     "report.kind 'digits' cannot measure what objective.kind 'classification' trains; "
     "set report={kind: classifier}, or report=null"),
    ("digits_afm", ["report={kind: classifier}"],
     "report.kind 'classifier' cannot measure what objective.kind 'afm' trains; set another kind, or report=null"),
    ("digits_afm", ["hooks.evaluation={kind: classifier, every_steps: 10}"],
     "hooks.evaluation.kind 'classifier' cannot measure what objective.kind 'afm' trains; "
     "set hooks.evaluation.kind=samples, or hooks.evaluation=null"),
    ("classifier_digits", ["hooks.evaluation={kind: samples, every_steps: 10, reference: x.npz}"],
     "hooks.evaluation.kind 'samples' cannot measure what objective.kind 'classification' trains; "
     "set hooks.evaluation.kind=classifier, or hooks.evaluation=null"),
]


@pytest.mark.parametrize(("recipe", "overrides", "message"), OBJECTIVES)
def test_what_an_objective_cannot_train_is_refused(recipe: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(load(RunConfig, recipe, overrides), 1)
    assert str(caught.value) == message


@pytest.mark.parametrize(("overrides", "world_size", "message"), [
    (["data.global_batch=10", "loop.accumulation=2"], 4,
     "data.global_batch 10 is not divisible by ranks 4 x loop.accumulation 2 = 8; use data.global_batch=8 or 16, or "
     "change loop.accumulation"),
    (["data.global_batch=1", "loop.accumulation=2"], 1,
     "data.global_batch 1 is not divisible by ranks 1 x loop.accumulation 2 = 2; use data.global_batch=2, or change "
     "loop.accumulation"),
])
def test_a_batch_that_cannot_be_cut_is_refused(overrides: list[str], world_size: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(load(RunConfig, "digits_afm", overrides), world_size)
    assert str(caught.value) == message


def test_narrow_networks_are_told_all_times() -> None:
    check(load(RunConfig, "mixture2d_afm", ["objective.times={kind: any}"]), 1)
    check(load(RunConfig, "mixture2d_flow_matching", ["objective.class_dropout=0.1"]), 1)
