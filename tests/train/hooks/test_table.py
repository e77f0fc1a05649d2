"""A hook is one file and one line in train/hooks/table.py: here a class of the test's own and an entry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.core.run_folder import RunFolder
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.train.hooks.table import HOOKS
from tests.program import SMALL_FLOW_MATCHING

RECIPE = (
    "digits_flow_matching", *SMALL_FLOW_MATCHING[-4:], "loop.steps=5", "hooks.metrics.every_steps=1",
    "hooks.metrics.tensorboard=false", "parallel.device=cpu",
)

# The file and, at its end, the line. The table is read when a program starts, so this is one.
TOY = """
import sys
from dataclasses import dataclass

from afm_scale.train.hooks.hook import QuietHook
from afm_scale.train.hooks.surroundings import HookKind
from afm_scale.train.hooks.table import HOOKS

@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    every_steps: int
    word: str = "toy"

class Toy(QuietHook):
    def __init__(self, config, around):
        self._config, self._around = config, around

    def after_step(self, state, report):
        if report.step % self._config.every_steps == 0:
            self._around.notes["toy/step"] = report.step
            self._around.events.write(self._config.word, step=report.step, of=self._around.total_steps)

HOOKS["toy"] = HookKind(Toy, ToyConfig)

from afm_scale.commands import ending
ending.leave(ending.run(sys.argv[1:]))  # as the program ends
"""


def with_toy(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TOY, "train", *RECIPE, *words], capture_output=True, text=True, timeout=120
    )


def test_a_hook_of_ones_own_with_settings_of_its_own_watches_a_run(tmp_path: Path) -> None:
    ended = with_toy(f"run.folder={tmp_path}", "hooks.toy.every_steps=2")
    assert ended.returncode == 0, ended.stderr
    events = [event for event in RunFolder(tmp_path).read_events() if event["kind"] == "toy"]
    assert [(event["step"], event["of"]) for event in events] == [(2, 5), (4, 5)]
    rows = list(RunFolder(tmp_path).read_metrics())
    assert [row.get("toy/step") for row in rows] == [None, None, 2, None, 4]  # it comes after the hook of metrics


def test_settings_that_are_wrong_are_refused_with_the_nearest_that_is_known(tmp_path: Path) -> None:
    ended = with_toy(f"run.folder={tmp_path}", "hooks.toy={every_step: 2}")
    assert ended.returncode == 2
    assert "hooks.toy.every_step: unknown key; did you mean 'every_steps'? known: every_steps, word" in ended.stderr
    ended = with_toy(f"run.folder={tmp_path}", "hooks.toys.every_steps=2")
    assert ended.returncode == 2 and "hooks.toys: unknown key; did you mean 'toy'?" in ended.stderr


def test_a_recipe_can_set_every_hook_of_the_table_that_has_settings_and_no_other() -> None:
    chosen = load(RunConfig, "digits_flow_matching", ["hooks.garbage={}", "hooks.consistency.every_steps=7"]).hooks
    assert vars(chosen).keys() == {name for name, kind in HOOKS.items() if kind.config is not None}
    assert (chosen.garbage.every_steps, chosen.consistency.every_steps) == (1000, 7)
    with pytest.raises(ConfigError, match="hooks.console: found null"):
        load(RunConfig, "digits_flow_matching", ["hooks.console=null"])
