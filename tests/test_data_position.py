"""Training on packed images: the samples a run sees do not depend on how often it dies or how many ranks it has."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from afm_scale.checkpoint.manifest import read_manifest, resolve_checkpoint
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR
from afm_scale.core.random import Positions
from afm_scale.data.images import read_or_substitute
from afm_scale.data.order import EpochOrder
from afm_scale.data.shards import PackedShards

from .data.small import packed_images
from .data.small_sources import damaged
from .program import QUIET, SMALL_AFM, ForkedRanks, end, train_forked
from .test_resume import last_step, rows, wait_until

pytestmark = pytest.mark.slow

NUM_SAMPLES, BATCH, STEPS, SEED = 36, 12, 40, 0  # a step of two turns takes 24: an epoch is one step and a half
BROKEN = (3, 10, 17, 24, 31)
PIXELS = tuple(setting for setting in SMALL_AFM if setting not in QUIET[:1])
SETTINGS = (
    f"loop.steps={STEPS}", f"loop.seed={SEED}", "checkpoint.every_steps=5", "checkpoint.keep_last=3",
    "hooks.metrics.every_steps=1", "parallel.precision=fp64",
)


def packed(folder: Path, *broken: int) -> Path:
    """36 images of 8 pixels in 4 classes; of those that are broken, one byte is another."""
    packed_images(folder, num_samples=NUM_SAMPLES, num_classes=4, size=8)
    return damaged(folder, *broken)


def start(data: Path, folder: Path, *overrides: str, ranks: int = 1, **changes: object) -> ForkedRanks:
    described = {"kind": "webdataset", "folder": str(data), "size": 8, "num_classes": 4, "global_batch": BATCH,
                 "workers": 2} | changes
    return train_forked(PIXELS, folder, f"data={json.dumps(described)}", *SETTINGS, *overrides, ranks=ranks)


def finish(process: ForkedRanks) -> None:
    code, _, stderr = end(process)
    assert code == EXIT_DONE, stderr
    assert "Warning" not in stderr and "leaked" not in stderr


def skipped(folder: Path) -> Counter[tuple[int, str, str]]:
    """(step, place, substitute) of every line, whichever rank wrote it."""
    lines = [json.loads(line) for path in (folder / "skipped").glob("*") for line in path.read_text().splitlines()]
    return Counter((line["step"], line["place"], line["substitute"]) for line in lines)


def met(data: Path) -> Counter[tuple[int, str, str]]:
    """What a run must skip, found by reading the samples of each step by hand."""
    shards, order, found = PackedShards(data), EpochOrder(NUM_SAMPLES, seed=SEED), Counter()
    for step in range(STEPS):
        for sample in order.indices(Positions(step * 2 * BATCH, 1, 2 * BATCH)).tolist():
            _, _, refused = read_or_substitute(shards, sample, shards.read, seed=SEED, on_error="skip")
            found.update((step + 1, one.place, one.substitute) for one in refused)
    return found


def test_a_run_killed_and_moved_to_other_ranks_sees_every_sample_exactly_once_per_epoch(tmp_path: Path) -> None:
    """The broken samples are those whose passing is on record; the weights vouch for the others."""
    data = packed(tmp_path / "data", *BROKEN)
    finish(start(data, tmp_path / "undisturbed", on_error="skip"))
    folder = tmp_path / "disturbed"
    for ranks, steps in ((2, 8), (3, 16)):
        process = start(data, folder, ranks=ranks, on_error="skip")
        wait_until(process, lambda steps=steps: last_step(folder) > steps)
        process.kill()
        end(process)
    finish(start(data, folder, ranks=4, on_error="skip"))

    wanted = met(data)
    num_epochs = 2 * BATCH * STEPS / NUM_SAMPLES
    assert sum(wanted.values()) >= int(num_epochs) * len(BROKEN)
    assert skipped(tmp_path / "undisturbed") == wanted
    assert skipped(folder) == wanted
    assert sum(row["data_skipped"] for row in rows(folder)) == sum(wanted.values())
    found, undisturbed = resolve_checkpoint(folder), resolve_checkpoint(tmp_path / "undisturbed")
    assert read_manifest(found).scalars == read_manifest(undisturbed).scalars
    assert read_manifest(found).scalars["data"] == {"consumed": 2 * BATCH * STEPS}
    one, other = read_tensors(found), read_tensors(undisturbed)
    assert max(float((one[name] - other[name]).abs().max()) for name in other) < 1e-9


def test_a_broken_sample_in_the_middle_ends_all_ranks_with_its_name(tmp_path: Path) -> None:
    data = packed(tmp_path / "data", 20)
    for ranks in (1, 2):
        code, _, stderr = end(start(data, tmp_path / f"run_{ranks}", ranks=ranks))
        assert code == EXIT_USER_ERROR, stderr
        told = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(told) == 1
        assert "shard-000001.tar, sample 000000020: the bytes are not those that were packed" in told[0]


@pytest.mark.parametrize(
    ("changes", "ranks", "told"),
    [
        ({}, 2, "shard-000002.tar: No such file or directory"),
        ({"num_classes": 10}, 1, "has 4 classes, data.num_classes is 10; set data.num_classes=4"),
    ],
)
def test_a_data_set_that_does_not_fit_ends_the_run_before_it_begins(
    tmp_path: Path, changes: dict, ranks: int, told: str
) -> None:
    data = packed(tmp_path / "data")
    (data / "shard-000002.tar").unlink()
    code, _, stderr = end(start(data, tmp_path / "run", ranks=ranks, **changes))
    assert code == EXIT_USER_ERROR
    assert told in stderr and stderr.count("error: ") == 1 and "Traceback" not in stderr
