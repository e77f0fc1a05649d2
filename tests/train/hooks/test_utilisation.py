from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_scale.objectives.objective import ObjectiveConfig
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.counting import step_flops, step_flops_in_force
from afm_scale.run.load import load
from afm_scale.run.phases import build_phases
from afm_scale.train.hooks.console import ConsoleConfig, ConsoleHook
from afm_scale.train.hooks.utilisation import Utilisation
from tests.program import SMALL_FLOW_MATCHING, end, train
from tests.train.hooks.small import report, small_plan, small_state

CPU = torch.device("cpu")


def count(objective: ObjectiveConfig, step: int) -> float:
    return 2e9


@pytest.mark.parametrize(("images_per_second", "ranks", "told"), [
    (100.0, 1, "achieved 200 GFLOP/s a rank"), (100.0, 4, "achieved 50 GFLOP/s a rank"),
    (1234.0, 1, "achieved 2.47 TFLOP/s a rank"), (0.25, 1, "achieved 500 MFLOP/s a rank"),
    (0.0, 1, "achieved 0 MFLOP/s a rank"),
])
def test_without_a_known_peak_the_operations_of_a_rank_are_told(
    images_per_second: float, ranks: int, told: str
) -> None:
    assert Utilisation(count, CPU, ranks).describe(small_state(small_plan()), images_per_second) == told


def test_of_a_known_gpu_it_is_the_share_of_the_dense_bf16_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    utilisation = Utilisation(count, torch.device("cuda", 0), ranks=8)
    images_per_second = 0.4 * 989e12 * 8 / 2e9
    assert utilisation.describe(small_state(small_plan()), images_per_second) == "utilisation 40.0%"


def test_an_objective_is_counted_once_until_it_is_another_or_the_time_is_a_small_share() -> None:
    counted, now = [], [0.0]

    def slow(objective: ObjectiveConfig, step: int) -> float:
        counted.append(objective)
        now[0] += 2.0
        return float(len(counted)) * 1e9

    def told_after(seconds: float) -> str:
        now[0] += seconds
        return utilisation.describe(state, 1.0)

    state = small_state(small_plan())
    utilisation = Utilisation(slow, CPU, 1, clock=lambda: now[0])
    assert [told_after(10), told_after(10), told_after(189)] == ["achieved 1 GFLOP/s a rank"] * 3
    assert told_after(2) == "achieved 2 GFLOP/s a rank"
    state.objective.config = replace(state.objective.config)  # as a pilot does in the next phase
    assert told_after(1) == "achieved 3 GFLOP/s a rank" == told_after(1)
    assert counted[0] is counted[1] is not counted[2]


def test_a_loss_that_cannot_be_counted_is_said_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def reads(objective: ObjectiveConfig, step: int) -> float:
        return torch.empty((), device="meta").item()

    utilisation, state = Utilisation(reads, CPU, 1), small_state(small_plan())
    assert [utilisation.describe(state, 9.0) for _ in range(3)] == ["", "", ""]
    assert capsys.readouterr().err.count("cannot be counted, so no utilisation is shown: ") == 1


def test_the_line_has_it_and_the_time_of_counting_is_of_no_line() -> None:
    def slow(objective: ObjectiveConfig, step: int) -> float:
        time.sleep(1.0)
        return 1e9

    stream, state = io.StringIO(), small_state(small_plan())
    hook = ConsoleHook(
        ConsoleConfig(line_every_seconds=0), total_steps=9, stream=stream, utilisation=Utilisation(slow, CPU, 1)
    )
    hook.on_start(state)
    for step in (1, 2):
        time.sleep(0.01)
        hook.after_step(state, report(step))
    first, second = stream.getvalue().splitlines()
    assert re.search(r"images/s  achieved [\d.e+]+ [GM]FLOP/s a rank  data wait", second)
    rate = float(re.search(r"([\d,]+) images/s", second)[1].replace(",", ""))
    assert rate > 4  # four images in much less than the second that counting takes


def test_a_run_that_is_over_before_a_line_is_due_counts_nothing() -> None:
    def never(objective: ObjectiveConfig, step: int) -> float:
        raise AssertionError

    stream, state = io.StringIO(), small_state(small_plan())
    hook = ConsoleHook(
        ConsoleConfig(line_every_seconds=60), total_steps=1, stream=stream, utilisation=Utilisation(never, CPU, 1)
    )
    hook.on_start(state)
    hook.after_step(state, report(1))
    assert stream.getvalue().startswith("step 1/1  ") and "FLOP" not in stream.getvalue()


def test_what_is_counted_in_a_run_is_what_the_recipe_is_counted_to_be() -> None:
    config = load(RunConfig, "digits_afm").resolved()
    assert step_flops_in_force(config, build_phases(config)[0].from_step(0).objective, 7) == step_flops(config, 7)


def test_an_objective_that_asks_less_in_the_end_is_counted_as_it_stands() -> None:
    config = load(RunConfig, "digits_alpha_flow").resolved()
    in_force = build_phases(config)[0].from_step(0).objective
    steps = (0, config.loop.steps - 1)
    counted = [step_flops_in_force(config, in_force, step) for step in steps]
    assert counted == [step_flops(config, step) for step in steps] and counted[0] != counted[1]


def test_training_shows_it(tmp_path: Path) -> None:
    overrides = ("loop.steps=6", "hooks.console.line_every_seconds=0")
    code, _, stderr = end(train(SMALL_FLOW_MATCHING, tmp_path / "run", *overrides), timeout=280)
    assert code == 0 and re.search(r"step 5/6 .* images/s  achieved [\d.e+]+ [TGM]FLOP/s a rank  data wait", stderr)
