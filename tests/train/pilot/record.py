"""Records runs that are as they should be, and runs with a planted fault, for the tests of the rules.

    python -m tests.train.pilot.record OUT [NAME ...]        all of `RUNS`, one after another, about three minutes each

OUT/NAME.json holds what the pilot remembered of each evaluation. docs/pilot.md tells what they show.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from afm_scale.checkpoint.manifest import read_manifest, resolve_checkpoint
from afm_scale.train.pilot.rules import COST, FAKE, GRADIENT, REAL

READ = (GRADIENT, COST, REAL, FAKE)  # the signals that rules read
COMMON = ("hooks.samples=null", "hooks.metrics.tensorboard=false", "report=null", "checkpoint.every_steps=100000")
DIGITS = (
    "digits_afm", *COMMON, "data.part=train", "hooks.evaluation={kind: digits, every_steps: 100}",
    "pilot={quality: frechet_distance, diversity: diversity}",
)
MIXTURE = (
    "mixture1d_afm", *COMMON, "hooks.evaluation={kind: mixture1d, every_steps: 100}",
    "pilot={quality: w1, diversity: diversity}",
)


def rate(first: float, middle: float, last: float) -> str:
    """The discriminator's learning rate in digits_afm, at other values."""
    points = f"[[0, {first}], [300, {middle}], [1400, {middle}], [2000, {last}]]"
    return f"optimizer.discriminator.learning_rate={{kind: piecewise, points: {points}}}"


RUNS = {
    "digits_good": DIGITS,
    "digits_rate_10": (*DIGITS, rate(1e-4, 5e-3, 5e-4)),
    "digits_rate_30": (*DIGITS, rate(3e-4, 1.5e-2, 1.5e-3)),
    "digits_frozen_generator": (*DIGITS, "optimizer.generator.learning_rate=1e-9", "loop.steps=1000"),
    "digits_no_penalty": (*DIGITS, "objective.penalty.weight=0"),
    "mixture_good": MIXTURE,
    "mixture_weight_0": (*MIXTURE, "objective.transport_weight=0"),
    "mixture_weight_20": (*MIXTURE, "objective.transport_weight=20"),
    "mixture_no_penalty": (*MIXTURE, "objective.penalty.weight=0", "objective.transport_weight=0"),
}


def record(name: str, out: Path, *more: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [sys.executable, "-m", "afm_scale", "train", *RUNS[name], f"run.folder={run}", *more]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        remembered = read_manifest(resolve_checkpoint(run)).scalars["pilot"]
    points = [{**point, "signals": {name: point["signals"][name] for name in READ}} for point in remembered["points"]]
    kept = {"points": points, "noise": remembered["noise"]}
    (out / f"{name}.json").write_text(json.dumps(_rounded(kept)) + "\n")


def _rounded(value: object) -> object:
    """Five digits are enough for a rule, and make a small file."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    for chosen in sys.argv[2:] or RUNS:
        record(chosen, Path(sys.argv[1]))
