"""The benchmark of sources, run small: every row, its JSON, and what it says of missing packages."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec

import pytest

from afm_scale.benchmarks.data import DataBenchmark, benchmark_data_command, describe, measure
from afm_scale.benchmarks.sample_files import make_jpegs
from afm_scale.core import packages
from afm_scale.core.errors import ConfigError

SMALL = {"images": 16, "batch": 4, "cores": 1, "seconds": 0.05, "windows": 1}
OPTIONAL = {"plain": "webdataset", "dali": "nvidia"}


def test_the_made_up_photographs_weigh_what_photographs_do() -> None:
    (data,) = make_jpegs(1)
    assert 50_000 < len(data) < 100_000


@pytest.mark.slow
def test_every_source_has_a_row_and_the_recipe_its_demand(capsys: pytest.CaptureFixture[str]) -> None:
    cores = os.sched_getaffinity(0)
    options = DataBenchmark(recipe="digits_afm", step_seconds=0.25, **SMALL)
    assert benchmark_data_command(options, as_json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert os.sched_getaffinity(0) == cores
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["plain", "webdataset", "dali", "latents"]
    for name, row in rows.items():
        if name in OPTIONAL and find_spec(OPTIONAL[name]) is None:
            assert row["images_per_second"] is None and "pip install" in row["note"]
        else:
            assert row["images_per_second"] > 0 and len(row["windows"]) == 1
            assert row["keeps_up"] == (row["images_per_second"] >= result["recipe"]["images_per_second"])
    assert result["recipe"]["images_per_second"] == 2 * 128 / 0.25
    if result["parity"] is not None:
        assert 0 < result["parity"]["originals"]["mean"] <= result["parity"]["originals"]["worst_image"] < 2
        assert result["parity"]["squares"]["worst_image"] == 0
    assert "digits_afm" in describe(result)


@pytest.mark.slow
def test_a_missing_package_is_a_row_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    result = measure(DataBenchmark(**SMALL))
    rows = {row["name"]: row for row in result["rows"]}
    for name, extra in (("plain", "webdataset"), ("dali", "dali")):
        assert rows[name]["images_per_second"] is None and f"'.[{extra}]'" in rows[name]["note"]
    assert rows["latents"]["images_per_second"] > 0 and rows["latents"]["ratio"] is None
    assert result["parity"] is None
    assert "pip install" in describe(result)


def test_more_cores_than_there_are_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="--cores 10000: this process may use"):
        DataBenchmark(cores=10_000)


@pytest.mark.parametrize(("changes", "message"), [
    ({"gpu": "abacus"}, "known are a100"), ({"utilisation": 1.5}, "utilisation"),
    ({"step_seconds": 0.0}, "step-seconds"),
])
def test_an_impossible_estimate_is_refused_before_anything_is_made(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(DataBenchmark(recipe="digits_afm", **SMALL | changes))
