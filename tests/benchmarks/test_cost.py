"""Forward passes of an update, counted, against what the objectives' own formulas say."""

from __future__ import annotations

import pytest

from afm_scale.benchmarks.comparison import operations
from afm_scale.benchmarks.cost import counted
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from tests.program import run

# Wide enough that what is outside of the blocks hardly counts.
WIDE = ("model.generator.depth=2", "model.generator.hidden_size=64", "model.generator.num_heads=2")
SMALL = ("model.generator.depth=1", *WIDE[1:])
UNGUIDED = ("objective.guidance=null",)
CASES = {  # forward passes at 0.1, 0.5 and 0.9 of the run; a derivative with its value counts as three
    ("flow_matching_b2",): (3, 3, 3),
    ("mean_flow_b2", *UNGUIDED): (3.75, 3.75, 3.75),
    ("mean_flow_b2",): (5.75, 5.75, 5.75),
    ("mean_flow_b2", *UNGUIDED, "objective.derivative=central"): (3.5, 3.5, 3.5),
    ("mean_flow_b2", *UNGUIDED, "objective.tangent=predicted"): (4, 4, 4),
    ("alpha_flow_b2",): (5, 5.75, 7.25),
    ("alpha_flow_b2", "objective.alpha.ends_in=floor"): (5, 5.75, 5.75),
    ("twin_flow_b2",): (3, 3 + 0.25 + 1 + 1.5 + 0.5, 3 + 0.25 + 1 + 1.5 + 0.5),
    ("twin_flow_b2", "objective.order=1", "objective.guidance_weight=0"): (3, 4.5, 4.5),
}


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_an_update_takes_as_many_forward_passes_as_its_formula_says(case: tuple[str, ...]) -> None:
    recipe, *settings = case
    _, units = counted(load(RunConfig, recipe, (*WIDE, *settings)), (0.1, 0.5, 0.9))
    assert units == pytest.approx(CASES[case], rel=0.03)


def test_a_run_whose_objective_changes_costs_the_mean_of_what_it_asks_when() -> None:
    config = load(RunConfig, "alpha_flow_b2", (*SMALL, *UNGUIDED, "objective.flow_matching_share=0.5"))
    forward, _ = counted(config, (0.0,))
    # Flow matching for 28.83% of the run, as long a derivative of half of the batch, and a pass of it in between.
    expected = 3 + 0.4234 * 0.5 + 0.2883 * 1.5
    assert operations(config) / (forward * 256 * config.loop.steps) == pytest.approx(expected, rel=0.03)


def test_the_command_prints_a_row_for_each_recipe() -> None:
    code, told, _ = run("benchmark", "cost", "digits_flow_matching", "digits_twin_flow", "--at", "0.2")
    assert code == 0
    rows = told.splitlines()
    assert rows[0] == "| recipe | TFLOP a forward | at 0.2 |" and rows[2].endswith("| 3.00 |")
    assert rows[3].startswith("| digits_twin_flow | ")
