"""Training learns: shortened runs of the recipes through the command line end far from where they began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE

pytestmark = pytest.mark.slow


def quality(recipe: str, folder: Path, *overrides: str) -> dict[str, Any]:
    words = ["train", recipe, f"run.folder={folder}", "parallel.device=cpu", "parallel.plan=ddp", *overrides]
    assert main(words) == EXIT_DONE
    assert (folder / "samples" / "final.png").stat().st_size > 0
    return json.loads((folder / "summary.json").read_text())["quality"]


def test_a_few_hundred_updates_bring_the_flow_to_the_mixture(tmp_path: Path) -> None:
    short = (
        "loop.steps=600", "data.global_batch=256", "average.decay=0.98",
        "objective.transport_weight={kind: cosine, start: 0.25, end: 0.02, steps: 480}",
    )
    untrained = quality("mixture1d_afm", tmp_path / "untrained", "loop.steps=0")
    assert untrained["w1"] > 0.8
    trained = quality("mixture1d_afm", tmp_path / "trained", *short)
    assert trained["w1"] < 0.15  # 0.05 here
    assert trained["rms_to_transport_map"] < 0.35  # 0.14 here; any other map of the same quality is beyond 1


@pytest.mark.parametrize(("recipe", "steps", "bound"), [("digits_afm", 300, 20.0), ("digits_flow_matching", 300, 6.0)])
def test_a_short_run_draws_digits_rather_than_noise(tmp_path: Path, recipe: str, steps: int, bound: float) -> None:
    found = quality(recipe, tmp_path, f"loop.steps={steps}", "average.decay=0.98")  # short memory for a short run
    assert found["frechet_distance"] < bound  # 7.7 and 2.0 here; Gaussian noise: 63
    assert found["diversity"] > 0.5
