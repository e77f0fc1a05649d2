from __future__ import annotations

from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, ConfigError
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.guides import frozen_networks
from afm_scale.run.load import load

VELOCITY = "objective.guidance={kind: velocity, weight: 1.0, low: 0.0, high: 0.5}"
CLASSIFIER = "model.classifier={kind: mlp, width: 8}"
FLOW_MATCHING = (
    "objective={kind: flow_matching, class_dropout: 0.1}", "model.discriminator=null", "optimizer.discriminator=null",
)


def checked(recipe: str, *overrides: str) -> RunConfig:
    config = load(RunConfig, recipe, overrides)
    check(config, 1)
    return config


@pytest.mark.parametrize(("recipe", "overrides", "message"), [
    ("mixture2d_afm", [VELOCITY], "kind 'velocity' needs a flow model; set model.flow"),
    ("mixture2d_afm_flow", ["model.classifier=null"], "of kind 'flow' needs a classifier"),
    ("mixture2d_afm_plain", ["model.classifier=null"], "of kind 'plain' needs a classifier"),
    ("mixture2d_afm", ["model.flow=runs/flow"], "model.flow is set, but nothing asks it: objective.guidance is null"),
    ("mixture2d_afm_flow", ["model.flow=runs/flow"], "nothing asks it: objective.guidance is of kind 'flow'"),
    ("mixture2d_afm", [CLASSIFIER], "model.classifier is described, but nothing asks it"),
    ("mixture2d_afm_flow", [VELOCITY, "model.flow=runs/flow"], "nothing asks it: objective.guidance is of kind 'velo"),
    ("mixture2d_afm", [*FLOW_MATCHING, CLASSIFIER], "no guidance that could ask it; set model.classifier=null"),
    ("mixture2d_afm", [*FLOW_MATCHING, "model.flow=runs/x"], "no guidance that could ask it; set model.flow=null"),
    ("mixture2d_afm", [*FLOW_MATCHING, "model.generator.conditional=false"], "set model.generator.conditional=true"),
    ("digits_flow_matching", ["objective.class_dropout=0.1"], "set model.generator.null_class=true"),
])
def test_a_guide_that_is_missing_or_idle_is_refused(recipe: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(recipe, *overrides)


def test_what_guidance_needs_and_no_more_is_accepted() -> None:
    checked("mixture2d_afm", VELOCITY, "model.flow=runs/flow")
    checked("mixture2d_afm", *FLOW_MATCHING)
    checked("digits_flow_matching", "objective.class_dropout=0.1", "model.generator.null_class=true")


def trained(folder: Path, *overrides: str, recipe: str = "mixture2d_afm") -> Path:
    words = ["loop.steps=0", "parallel.device=cpu", "report=null", "hooks.metrics.tensorboard=false", *overrides]
    assert main(["train", recipe, f"run.folder={folder}", "model.generator.width=8", *words]) == EXIT_DONE
    return folder


def guided_by(folder: Path, *overrides: str) -> RunConfig:
    return load(RunConfig, "mixture2d_afm", [VELOCITY, f"model.flow={folder}", *overrides])


def test_a_flow_model_that_never_missed_the_class_is_refused(tmp_path: Path) -> None:
    folder = trained(tmp_path / "flow", *FLOW_MATCHING, "objective.class_dropout=0")
    with pytest.raises(ConfigError, match="always saw the class .* train it with objective.class_dropout=0.1"):
        frozen_networks(guided_by(folder), plan=None)


def test_a_flow_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    folder = trained(tmp_path / "flow", *FLOW_MATCHING, "data.distribution.centres=[[0, 0], [1, 1]]")
    with pytest.raises(ConfigError, match="trained on data of num_classes 2, this recipe has 9"):
        frozen_networks(guided_by(folder), plan=None)


def test_a_run_of_another_objective_is_no_flow_model(tmp_path: Path) -> None:
    folder = trained(tmp_path / "game", "model.discriminator.width=8")
    with pytest.raises(ConfigError, match="is a run of objective 'afm'; wanted 'flow_matching'"):
        frozen_networks(guided_by(folder), plan=None)


def test_a_flow_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.flow: .*nowhere"):
        frozen_networks(guided_by(tmp_path / "nowhere"), plan=None)
