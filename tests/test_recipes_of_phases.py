"""The recipes of all four phases say what the paper's Table 11 says, and a run of one really goes through them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR
from afm_scale.core.run_folder import RunFolder
from afm_scale.core.schedules import Constant
from afm_scale.core.typed import to_mapping
from afm_scale.core.types import Role
from afm_scale.flow.guidance import FlowGuidance, PlainGuidance
from afm_scale.run.config import RunConfig
from afm_scale.run.load import RECIPES
from afm_scale.run.phases import build_phases

from .test_recipes import FEW_STEPS, ONE_STEP, header, recipe, shrunk

IMAGES = 1_281_167


class Row(NamedTuple):
    """One row of Table 11; the first phase is that of the unguided recipe, whose own test has its rates."""

    ends: tuple[int, int, int, int]  # epochs, from the beginning of the run
    generator_rates: tuple[float, float, float]  # phases 2 to 4
    discriminator_rates: tuple[float, float, float]
    fids: tuple[str, str, str, str]
    guidance: FlowGuidance | PlainGuidance = ONE_STEP


USUAL, FEW = (8e-5, 3e-5, 5e-5), (8e-5, 3e-5, 3e-5)
TABLE_11 = {
    "afm_1step_b2": Row((150, 155, 170, 200), USUAL, USUAL, ("7.30", "7.05", "6.07", "3.05")),
    "afm_1step_m2": Row((100, 105, 110, 120), USUAL, USUAL, ("6.19", "5.54", "5.21", "2.82")),
    "afm_1step_l2": Row((85, 105, 110, 120), USUAL, USUAL, ("6.26", "5.14", "4.36", "2.63")),
    "afm_1step_xl2": Row((90, 110, 120, 125), USUAL, USUAL, ("5.88", "4.81", "3.98", "2.38")),
    "afm_2step_xl2": Row((75, 85, 90, 95), FEW, FEW, ("4.79", "4.34", "2.36", "2.11"), FEW_STEPS),
    "afm_4step_xl2": Row((130, 135, 140, 145), FEW, FEW, ("5.28", "3.89", "2.70", "2.02"), FEW_STEPS),
    "afm_deep56": Row((75, 80, 85, 95), (4e-5, 1.5e-5, 1e-5), (8e-5, 3e-5, 2e-5), ("4.16", "3.41", "2.77", "2.08")),
    "afm_deep112": Row((90, 95, 100, 120), (2e-5, 2.5e-6, 5e-6), (8e-5, 1e-5, 2e-5), ("3.78", "3.40", "2.92", "1.94")),
}


def lengths(row: Row) -> list[int]:
    """Epochs of each phase."""
    return [end - begin for begin, end in zip((0, *row.ends), row.ends, strict=False)]


def test_the_recipes_of_phases_are_those_of_the_table() -> None:
    assert {file.stem for file in RECIPES.glob("afm_*_phases.yaml")} == {f"{name}_phases" for name in TABLE_11}


@pytest.mark.parametrize("name", TABLE_11)
def test_the_phases_are_the_row_of_table_11(name: str) -> None:
    row, config, alone = TABLE_11[name], recipe(f"{name}_phases"), recipe(name)
    pilot, phases = config.pilot, build_phases(config)
    assert [phase.config.until.epochs for phase in phases] == lengths(row) and pilot.images_per_epoch == IMAGES
    assert [phase.config.average_into_generator for phase in phases] == ["never", *3 * ["every_evaluation"]]
    assert [phase.config.discriminator_reload for phase in phases] == [*2 * ["never"], *2 * ["on_stagnation"]]
    assert {phase.config.optimizer for phase in phases} == {"keep"}
    first, *later = (phase.from_step(1000) for phase in phases)
    assert first.objective == alone.objective.resolved("tf32")
    assert first.learning_rates == {role: getattr(alone.optimizer, role.value).learning_rate for role in Role
                                    if role is not Role.CLASSIFIER}
    for role, rates in ((Role.GENERATOR, row.generator_rates), (Role.DISCRIMINATOR, row.discriminator_rates)):
        assert tuple(phase.learning_rates[role](1000) for phase in later) == rates
    assert {phase.objective.transport_weight(10_000) for phase in later} == {0.001}
    assert [phase.objective.guidance for phase in later] == [None, None, row.guidance]
    assert [phase.objective.augmentation for phase in later[:2]] == [None, None]
    assert later[2].objective.augmentation.probability(10_000) == 0.4
    for phase in later:  # all else is as the unguided recipe says
        assert replace(
            phase.objective, transport_weight=alone.objective.transport_weight, guidance=None, augmentation=None
        ) == first.objective


@pytest.mark.parametrize("name", TABLE_11)
def test_all_else_is_the_unguided_recipe_but_for_the_guide_and_what_the_pilot_watches(name: str) -> None:
    config, alone, guided = (recipe(f"{name}{kind}") for kind in ("_phases", "", "_guided"))
    assert config.model == guided.model
    assert config.hooks == replace(alone.hooks, evaluation=config.hooks.evaluation)
    assert config.run.folder == Path("runs", f"{name}_phases")
    changed = {"run": alone.run, "loop": alone.loop, "model": alone.model, "hooks": alone.hooks, "pilot": None}
    assert replace(config, **changed) == alone


@pytest.mark.parametrize("name", TABLE_11)
def test_the_last_step_is_the_end_of_the_last_phase_and_each_phase_is_measured_just_before_its_end(name: str) -> None:
    row, config = TABLE_11[name], recipe(f"{name}_phases")
    updates = [math.ceil(epochs * IMAGES / 256) for epochs in lengths(row)]
    assert config.loop.steps == sum(updates)
    for number, end in enumerate(row.ends, start=1):
        last = sum(updates[:number])
        assert last - 150 < end * config.hooks.evaluation.every_steps <= last


@pytest.mark.parametrize("name", TABLE_11)
def test_the_header_says_what_to_expect_and_at_what_cost(name: str) -> None:
    row, text = TABLE_11[name], header(f"{name}_phases")
    steps = recipe(f"{name}_phases").loop.steps
    for words in ("2511.22475", "Table 11", "forwards", "has not run it", "synthetic", "afm_phases.yaml", f"{steps:,}"):
        assert words in text
    for fid, end in zip(row.fids, row.ends, strict=True):
        assert f"{fid} at epoch {end}" in text or f"{fid} at {end}" in text


def test_training_one_asks_for_the_reference_by_name_and_showing_it_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["afm_1step_b2_phases", f"run.folder={tmp_path / 'run'}"]
    assert main(["show", *words]) == EXIT_DONE
    capsys.readouterr()
    for more, told in (
        ([], "hooks.evaluation.reference is null"),
        (["hooks.evaluation.reference=absent.npz"], "absent.npz is not there"),
    ):
        assert main(["train", *words, *more]) == EXIT_USER_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert not (tmp_path / "run").exists()


def short(config: RunConfig) -> str:
    """Its phases, each of two updates, without what acts on evaluations."""
    never = {"average_into_generator": "never", "discriminator_reload": "never", "until": {"updates": 2}}
    return "pilot.phases=" + json.dumps([to_mapping(phase) | never for phase in config.pilot.phases])


@pytest.mark.parametrize("name", ["afm_1step_b2_phases", "afm_2step_xl2_phases"])
def test_a_run_goes_through_the_four_phases_and_is_guided_in_the_last(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    words = [
        *shrunk(name, tmp_path), short(config), "loop.steps=100", "hooks.evaluation=null", "hooks.samples=null",
        "hooks.metrics.every_steps=1", "hooks.metrics.tensorboard=false", "parallel.device=cpu",
        "parallel.precision=fp32",
    ]
    assert main(["train", name, *words]) == EXIT_DONE
    folder = RunFolder(tmp_path / name)
    begun = [(event["phase"], event["step"]) for event in folder.read_events() if event["kind"] == "phase"]
    assert begun == [("transport", 0), ("average", 2), ("settle", 4), ("guided", 6)]
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))  # the last phase's end is the run's
    guided = [any("guidance" in key for key in row) for row in rows]
    assert guided == [False] * 6 + [True] * 2
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    row = TABLE_11[name.removesuffix("_phases")]
    first = config.optimizer.generator.learning_rate
    assert isinstance(first, Constant)
    expected = [rate for rate in (first.value, *row.generator_rates) for _ in range(2)]
    assert [rate_of(row) for row in rows] == pytest.approx(expected)


def rate_of(row: dict[str, Any]) -> float:
    (rate,) = (value for key, value in row.items() if "learning_rate" in key and "generator" in key)
    return rate
