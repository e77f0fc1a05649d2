"""The objective that docs/adding_an_objective.md ends in, as it stands there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from afm_scale.__main__ import main
from afm_scale.core.types import Role
from afm_scale.objectives.table import OBJECTIVES
from tests.objectives.linear_gaussian import NearlyExact, fixed_point, networks
from tests.objectives.small import CPU, SmallGenerator, batch_of, draws_of, parts_of
from tests.objectives.small import networks as small_networks
from tests.program import ROOT

PAGE = ROOT / "docs" / "adding_an_objective.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file = tmp_path_factory.mktemp("example") / "shortcut.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("shortcut_of_the_page", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks up its annotations
    spec.loader.exec_module(module)
    return module


def test_the_page_has_two_pages_and_its_example_the_length_that_objectives_may_have(example: ModuleType) -> None:
    lines = PAGE.read_text().splitlines()
    assert len(lines) <= 140
    assert len(Path(example.__file__).read_text().splitlines()) <= 180


def test_the_example_trains_and_goes_on(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, example.ShortcutConfig, example.Shortcut)
    words = ["objective={kind: shortcut}", f"run.folder={tmp_path / 'run'}", "parallel.device=cpu", "parallel.plan=ddp",
             "report=null", "hooks.samples=null", "hooks.metrics.tensorboard=false", "data.global_batch=8"]
    assert main(["train", "digits_mean_flow", "loop.steps=2", *words]) == 0
    assert main(["train", "digits_mean_flow", "loop.steps=3", *words]) == 0


def test_the_example_does_not_depend_on_the_layout(example: ModuleType) -> None:
    objective = example.Shortcut(example.ShortcutConfig(), lambda value: value, CPU)
    nets, batch = small_networks(SmallGenerator()), batch_of(16)
    whole = objective.loss(Role.GENERATOR, nets, batch, draws_of(16), 0).total
    for world_size, accumulation in ((2, 1), (2, 4)):
        parts = [part for rank in parts_of(batch, world_size, accumulation) for part in rank]
        found = torch.stack([objective.loss(Role.GENERATOR, nets, *part, step=0).total for part in parts])
        torch.testing.assert_close(found.mean(), whole)


def test_the_example_ends_at_the_mean_velocity(example: ModuleType) -> None:
    objective = example.Shortcut(example.ShortcutConfig(), lambda value: value, CPU)
    network = NearlyExact()
    off, rates = fixed_point(objective, network, networks(network), count=40_000)
    assert off.abs().max().item() < 0.05 and (rates > 0).all()
