"""Ranks beside each other: a table and code 0 where all are alike; one message and code 2 where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from afm_scale.core.errors import ConfigError
from afm_scale.parallel.health import slow
from afm_scale.run import together
from afm_scale.run.together import check_seen, check_versions, versions
from tests.program import ForkedRanks, end
from tests.ranks import run_ranks


def test_a_rank_is_slow_below_a_share_of_the_median_and_its_clock_by_seconds() -> None:
    found = {"matmul": [1.0, 1.1, 0.59, 1.0], "write": [1.0, 0.7, 1.0, 1.0], "clock": [0.0, 0.1, 0.0, -2.5]}
    assert slow(found) == {"matmul": [2], "clock": [3]}


def test_two_ranks_are_measured_and_told_apart(tmp_path: Path) -> None:
    settings = [f"run.folder={tmp_path}", "parallel.device=cpu"]
    code, stdout, stderr = end(ForkedRanks(["doctor", "--cluster", "--json", "digits_afm", *settings], 2))
    found = json.loads(stdout)
    assert [row["rank"] for row in found["ranks"]] == [0, 1] and found["folder"] == str(tmp_path), stderr
    assert all(row[name] > 0 for row in found["ranks"] for name in ("matmul", "memory copy", "write", "all-reduce"))
    assert all(abs(row["clock"]) < 1 for row in found["ranks"]) and found["versions"].keys() == versions().keys()
    assert code == int(bool(found["failed"])), found  # a busy machine may have a slow rank
    assert list(tmp_path.iterdir()) == []  # nothing stays


def differ(folder: str) -> list[str]:
    """What each rank is told of versions and of a folder of which the last rank sees another."""
    rank, told = dist.get_rank(), []
    together._PACKAGES = ("torch", *("numpy",) * (rank == 1))
    together.SEEN_SECONDS = 0.5
    for look in (check_versions, lambda: check_seen(Path(folder) / ("other" if rank == 1 else "own"), rank)):
        try:
            look()
        except ConfigError as error:
            assert error.is_of_all_ranks and error.exit_code == 2
            told.append(str(error))
    return told


def test_other_versions_and_a_folder_that_one_host_does_not_see_are_one_message(tmp_path: Path) -> None:
    first, second = run_ranks(2, differ, str(tmp_path))
    assert first[0].startswith("the ranks disagree on the versions of packages and code: rank 0 has '")
    assert "is not the same everywhere: what rank 0 writes there is not seen by rank 1 on" in first[1], first
    assert first[0] == second[0] and len(second) == 2


@pytest.mark.parametrize("words", [["doctor", "digits_afm"], ["doctor", "--cluster", "loop.steps=1"]])
def test_words_that_doctor_cannot_use_are_refused(words: list[str]) -> None:
    code, _, stderr = end(ForkedRanks(words, 1))
    assert code == 2 and "recipe" in stderr, stderr
