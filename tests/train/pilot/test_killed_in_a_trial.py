"""A run that is killed in the middle of a trial does the same acts as one that nobody disturbed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from afm_scale.checkpoint.manifest import read_manifest, resolve_checkpoint
from afm_scale.checkpoint.tensors import digest
from afm_scale.core.run_folder import RunFolder
from tests.program import SMALL_AFM, end, train

# It stalls, as these numbers have it, at every evaluation from the second one on.
SETTINGS = (
    *SMALL_AFM, "data.part=train", "parallel.device=cpu", "loop.steps=24", "checkpoint.every_steps=5",
    "hooks.evaluation={kind: digits, every_steps: 10, num_samples: 100}", "pilot.ring={every_steps: 4, keep: 3}",
    "pilot.rules.stall={patience: 1, least_improvement: 0.99, gap_falls_to: 1, gradient_stays_at: 0.01}",
    "pilot.reload={kind: trial, candidates: 2, updates: 30, evaluations: 2, cool_down: 10}",
    "pilot.phases=[{name: a, discriminator_reload: on_stagnation}]",
)


def events(folder: Path, *kinds: str) -> list[dict]:
    file = RunFolder(folder)
    found = file.read_events() if file.events.exists() else ()
    return [{**event, "time": None} for event in found if event["kind"] in kinds]


@pytest.mark.processes
@pytest.mark.slow
def test_killed_in_the_middle_of_a_trial_a_run_decides_the_same_again(tmp_path: Path) -> None:
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    code, _, stderr = end(train(SETTINGS, undisturbed))
    assert code == 0, stderr

    for number in (1, 2):
        process = train(SETTINGS, folder)
        deadline = time.monotonic() + 90
        while len([event for event in events(folder, "evaluation") if event["step"] == 20]) < number:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.3 * number)  # some branch is under way
        process.kill()
        end(process)
        assert not events(folder, "trial")
        for checkpoint in RunFolder(folder).checkpoints.glob("step_00000020"):
            shutil.rmtree(checkpoint)  # so that the next one evaluates again, which is how this test sees it coming
    code, _, stderr = end(train(SETTINGS, folder))
    assert code == 0, stderr

    assert [event["step"] for event in events(undisturbed, "trial")] == [20]
    assert events(folder, "trial", "act") == events(undisturbed, "trial", "act")
    found, wanted = resolve_checkpoint(folder), resolve_checkpoint(undisturbed)
    assert digest(found) == digest(wanted)
    assert read_manifest(found).scalars == read_manifest(wanted).scalars
