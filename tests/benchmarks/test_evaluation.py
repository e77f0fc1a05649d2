"""tools/benchmark.py evaluation, at sizes that take no time."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.program import ROOT


def benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    tool = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "evaluation", *words]
    return subprocess.run(tool, capture_output=True, text=True, timeout=60)


def test_every_part_is_timed_and_memory_only_grows() -> None:
    ended = benchmark("--samples", "200", "--members", "50", "--dim", "8", "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert [row["name"] for row in found["rows"]] == ["statistics", "Frechet distance", "precision and recall"]
    assert all(row["seconds"] > 0 for row in found["rows"])
    peaks = [found["features_mib"], *(row["peak_mib"] for row in found["rows"])]
    assert peaks == sorted(peaks)


def test_sizes_that_make_no_sense_are_refused() -> None:
    ended = benchmark("--members", "3")
    assert ended.returncode == 2 and "--members" in ended.stderr and "Traceback" not in ended.stderr
