from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from afm_scale.core.errors import ConfigError, DivergenceError
from afm_scale.core.typed import build
from afm_scale.train.hooks.divergence import DivergenceConfig, DivergenceGuard
from afm_scale.train.hooks.events import EventLog
from tests.ranks import run_ranks
from tests.train.hooks.small import report, run, small_plan, small_state

GOOD, NAN, INF = torch.tensor(1.0), torch.tensor(math.nan), torch.tensor(math.inf)


def guard(folder: Path, every_steps: int = 10) -> DivergenceGuard:
    plan = small_plan()
    events = EventLog(folder / "events.jsonl", enabled=plan.rank == 0)
    return DivergenceGuard(plan, DivergenceConfig(every_steps=every_steps), events)


def test_finite_steps_pass(tmp_path: Path) -> None:
    plan = small_plan()
    state = small_state(plan)
    run(state, plan, [guard(tmp_path, every_steps=1)], steps=3)
    assert state.step == 3


def test_a_loss_that_became_nan_by_training_ends_the_run(tmp_path: Path) -> None:
    plan = small_plan()
    state = small_state(plan)
    run(state, plan, [], steps=2)
    with torch.no_grad():
        next(state.players["generator"].module.parameters()).fill_(math.nan)
    with pytest.raises(DivergenceError, match="the generator's total was not finite at step 3 on rank 0"):
        run(state, plan, [guard(tmp_path, every_steps=5)], steps=5)
    assert state.step == 5  # it looked at a multiple of every_steps, and still names the step


@pytest.mark.parametrize(
    ("terms", "norms", "named"),
    [
        ({"generator/total": GOOD}, {"generator": INF}, "generator's gradient norm"),
        ({"generator/total": NAN}, {"generator": NAN}, "generator's total"),
        # In the order of play the discriminator's norm comes before the generator's loss, which it spoiled.
        ({"discriminator/r1": GOOD, "generator/total": NAN}, {"discriminator": NAN, "generator": NAN},
         "discriminator's gradient norm"),
    ],
)
def test_the_first_value_of_the_step_that_was_not_finite_is_named(
    tmp_path: Path, terms: dict[str, torch.Tensor], norms: dict[str, torch.Tensor], named: str
) -> None:
    checker, state = guard(tmp_path), small_state(small_plan())
    checker.after_step(state, report(1, terms=dict.fromkeys(terms, GOOD), grad_norms=dict.fromkeys(norms, GOOD)))
    checker.after_step(state, report(2, terms=terms, grad_norms=norms))
    checker.after_step(state, report(3, terms=dict.fromkeys(terms, NAN), grad_norms=norms))
    with pytest.raises(DivergenceError, match=f"the {named} was not finite at step 2 on rank 0"):
        checker.look()
    (event,) = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["step"], event["rank"]) == ("divergence", 2, 0)


def test_what_was_wrong_from_the_first_step_on_is_not_laid_to_the_learning_rate(tmp_path: Path) -> None:
    for first, told, never in ((7, "is hardly the cause", "Lower"), (8, "Lower optimizer.gen", "cause")):
        checker, state = guard(tmp_path), small_state(small_plan())
        for step in (7, 8):
            checker.after_step(state, report(step, terms={"generator/total": NAN if step >= first else GOOD}))
        with pytest.raises(DivergenceError, match=told) as caught:
            checker.look()
        assert never not in str(caught.value)


def test_the_end_of_a_run_is_looked_at_too(tmp_path: Path) -> None:
    checker, state = guard(tmp_path), small_state(small_plan())
    checker.after_step(state, report(1, grad_norms={"generator": NAN}))
    with pytest.raises(DivergenceError):
        checker.on_end(state, None)


def test_a_step_with_other_terms_does_not_hide_an_earlier_divergence(tmp_path: Path) -> None:
    checker, state = guard(tmp_path), small_state(small_plan())
    checker.after_step(state, report(1, terms={"generator/transport": NAN}))
    with pytest.raises(DivergenceError, match="transport was not finite at step 1"):
        checker.after_step(state, report(2))


def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="every_steps: found 0, wanted a whole number from 1"):
        build(DivergenceConfig, {"every_steps": 0})


def _diverges_on_rank_2(folder: Path) -> str:
    checker, state = guard(folder, every_steps=4), small_state(small_plan())
    with pytest.raises(DivergenceError) as caught:
        for step in range(1, 9):
            bad = int(os.environ["RANK"]) == 2 and step >= 3
            checker.after_step(state, report(step, terms={"generator/total": NAN if bad else GOOD}))
    return f"{step}: {caught.value}"


def test_one_rank_that_diverges_stops_all_at_the_same_step_with_the_same_words(tmp_path: Path) -> None:
    said = run_ranks(3, _diverges_on_rank_2, tmp_path)
    assert len(set(said)) == 1
    assert said[0].startswith("4: the generator's total was not finite at step 3 on rank 2")
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 1
