"""`hooks.evaluation` of the embedded data sets: their own figures, of fixed noises, in the log of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE
from tests.data.small import mnist_file
from tests.program import end, train

SMALL = ("data.global_batch=16", "checkpoint.every_steps=2", "hooks.metrics.every_steps=2", "hooks.samples=null",
         "report=null", "parallel={plan: ddp, device: cpu}", "loop.steps=2")
DIT = [f"model.{player}.{size}" for player in ("generator", "discriminator")
       for size in ("depth=1", "hidden_size=16", "num_heads=2")]
DIGITS = {"class_accuracy", "frechet_distance", "precision", "recall", "diversity"}


def found(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["figures"] for line in lines if line["kind"] == "evaluation"]


@pytest.mark.parametrize(("recipe", "evaluation", "figures"), [
    ("digits_afm", "{kind: digits, every_steps: 1, num_samples: 100}", DIGITS),
    ("mnist_afm", "{kind: mnist, every_steps: 1, num_samples: 100}", DIGITS),
    ("mixture1d_afm", "{kind: mixture1d, every_steps: 1}",
     {"w1", "rms_to_transport_map", "transport_cost", "optimal_cost", "monotone", "diversity", "modes"}),
    ("mixture2d_afm", "{kind: mixture2d, every_steps: 1, num_samples: 100}",
     {"frechet_distance", "diversity", "distance", "spread", "shift", "class_accuracy"}),
])
def test_a_run_logs_the_figures_of_its_data(
    recipe: str, evaluation: str, figures: set[str], tmp_path: Path
) -> None:
    data = {"digits_afm": ["data.part=train", *DIT], "mixture1d_afm": [], "mixture2d_afm": []}
    if recipe == "mnist_afm":
        data[recipe] = [f"data.file={mnist_file(tmp_path / 'digits.npz', count=1000)}", *DIT]
    words = [recipe, f"run.folder={tmp_path}", f"hooks.evaluation={evaluation}", *SMALL, *data[recipe]]
    assert main(["train", *words]) == EXIT_DONE
    first, second = found(tmp_path)
    assert set(first) == set(second) == figures and all(isinstance(value, float) for value in first.values())
    assert first != second


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    words = [*SMALL, *DIT, "data.part=train", "hooks.evaluation={kind: digits, every_steps: 2, num_samples: 101}"]
    for ranks in (1, 2):
        code, _, stderr = end(train(["digits_afm"], tmp_path / str(ranks), *words, ranks=ranks))
        assert code == EXIT_DONE, stderr
    (one,), (two,) = (found(tmp_path / str(ranks)) for ranks in (1, 2))
    assert two == pytest.approx(one, rel=1e-3)
