"""The same global batch on fewer ranks: in more microbatches, no larger than before, or one message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_scale.checkpoint.manifest import resolve_checkpoint
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.core.errors import ConfigError
from afm_scale.core.run_folder import RunFolder
from afm_scale.run.config import RunConfig
from afm_scale.run.elastic import for_ranks, most_ranks
from afm_scale.run.load import load
from tests.program import SMALL_AFM, end, train_forked


def recipe(batch: int, accumulation: int, elastic: bool = True) -> RunConfig:
    return load(RunConfig, "digits_afm", [
        f"data.global_batch={batch}", f"loop.accumulation={accumulation}", f"parallel.elastic={elastic}".lower(),
    ])


@pytest.mark.parametrize(("batch", "accumulation", "most", "now", "wanted"), [
    (64, 1, 8, 8, 1), (64, 1, 8, 16, 1), (64, 1, 8, 4, 2), (64, 2, 8, 4, 4), (64, 2, 8, 1, 16),
    (48, 1, 4, 3, 2),  # microbatches of 12 before; 16 samples a rank are two of 8
    (24, 1, 6, 4, 2),
])
def test_microbatches_are_no_larger_than_with_all_ranks(
    batch: int, accumulation: int, most: int, now: int, wanted: int
) -> None:
    found = for_ranks(recipe(batch, accumulation), now, most)
    assert found.loop.accumulation == wanted
    assert batch // (now * wanted) <= batch // (most * accumulation) or now >= most
    assert replace(found, loop=replace(found.loop, accumulation=accumulation)) == recipe(batch, accumulation)


def test_a_batch_that_cannot_be_kept_is_refused_with_the_numbers_that_can() -> None:
    with pytest.raises(ConfigError, match="3 of 4 ranks are left, and data.global_batch 64 .* one of 1, 2, 4,"):
        for_ranks(recipe(64, 1), 3, 4)


def test_without_the_setting_a_launcher_may_not_go_on_with_fewer_and_a_person_may(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(64, 1, elastic=False)
    assert for_ranks(config, 2, 4) == config
    monkeypatch.setenv("AFM_SCALE_STARTS", "1")
    assert for_ranks(config, 4, 4) == config
    with pytest.raises(ConfigError, match="2 of 4 ranks are left, and the launcher .*set parallel.elastic=true"):
        for_ranks(config, 2, 4)


def test_the_most_ranks_are_those_of_any_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert most_ranks(folder) == 0
    lines = ['{"kind": "start", "world_size": 2}', '{"kind": "save"}', '{"kind": "start", "world_size": 4}',
             '{"kind": "start", "world_size": 1}']
    folder.events.write_text("\n".join(lines) + "\n")
    assert most_ranks(folder) == 4


def test_two_ranks_and_then_one_take_the_steps_of_two(tmp_path: Path) -> None:
    """With different samples on each rank; what the launcher would do by itself is done here by hand."""
    words = [*SMALL_AFM, "parallel.precision=fp64", "parallel.elastic=true", "checkpoint.every_steps=3"]
    whole, shrunk = tmp_path / "whole", tmp_path / "shrunk"
    undisturbed = train_forked(words, whole, "loop.steps=6", ranks=2)
    assert end(train_forked(words, shrunk, "loop.steps=3", ranks=2), timeout=240)[0] == 0
    code, _, stderr = end(train_forked(words, shrunk, "loop.steps=6", ranks=1), timeout=240)
    assert code == 0 and "1 rank(s) keep data.global_batch with loop.accumulation=2" in stderr, stderr
    assert end(undisturbed, timeout=240)[0] == 0
    found, wanted = (read_tensors(resolve_checkpoint(folder)) for folder in (shrunk, whole))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)
    (event,) = (event for event in RunFolder(shrunk).read_events() if event["kind"] == "elastic")
    assert (event["step"], event["ranks"], event["accumulation"]) == (3, 1, 2)
