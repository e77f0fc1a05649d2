"""Adding a data set is a file and a line of the table, and so is its report: a newcomer's go through the whole command.

Nothing but `SOURCES` and `REPORTS` is touched, by an entry each: the loader, the checks, the command, `doctor` and
whoever decodes latents ask the configuration what they want to know.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from afm_scale.__main__ import main
from afm_scale.commands.doctor import examine
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR, ConfigError
from afm_scale.data.table import SOURCES
from afm_scale.evaluation.table import REPORTS
from afm_scale.run.autoencoders import decoder_of
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import dump_yaml, load
from tests.toys.rings import PackedRingsConfig, Rings, RingsConfig, RingsReport

SMALL = (
    "loop.steps=2", "parallel.device=cpu", "parallel.plan=ddp", "hooks.metrics.tensorboard=false",
    "model.generator.width=8", "model.discriminator.width=8", "report={kind: rings}",
)
RINGS, PACKED = "data={kind: rings, global_batch: 8}", "data={kind: packed_rings, global_batch: 8}"


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newcomer's lines."""
    monkeypatch.setitem(SOURCES, RingsConfig, Rings)
    monkeypatch.setitem(SOURCES, PackedRingsConfig, Rings)
    monkeypatch.setitem(REPORTS, RingsReport, "distance from the circle of the class")


def test_a_data_set_trains_a_generator_and_its_report_is_the_last_word(tmp_path: Path) -> None:
    assert main(["train", "mixture2d_afm", f"run.folder={tmp_path}", *SMALL, RINGS]) == EXIT_DONE
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["step"] == 2 and summary["quality"]["distance"] > 0
    with Image.open(tmp_path / "samples" / "final.png") as picture:
        assert picture.width > 100


def test_it_is_checked_shown_and_loaded_like_any_other(tmp_path: Path) -> None:
    config = load(RunConfig, "mixture2d_afm", [*SMALL, RINGS]).resolved()
    assert config.data == RingsConfig(global_batch=8) and config.report == RingsReport()
    check(config, 2)
    (tmp_path / "shown.yaml").write_text(dump_yaml(config))
    assert load(RunConfig, tmp_path / "shown.yaml") == config
    with pytest.raises(ConfigError, match="radius.*unknown key; known: global_batch, kind"):
        load(RunConfig, "mixture2d_afm", ["data={kind: rings, global_batch: 8, radius: 2}"])
    with pytest.raises(ConfigError, match="did you mean 'rings'"):
        load(RunConfig, "mixture2d_afm", ["data={kind: ringss, global_batch: 8}"])


def test_a_package_that_it_needs_and_that_is_missing_is_named_with_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data.kind 'packed_rings' needs the package rings_that_are_nowhere", "constraints.txt '.[rings]'"]
    assert main(["train", "mixture2d_afm", f"run.folder={tmp_path}", *SMALL, PACKED]) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert all(word in told for word in words) and "Traceback" not in told
    found = examine()["data"]
    assert found["data.kind rings"] == "yes: embedded"
    refused = found["data.kind packed_rings"]
    assert refused.startswith("no: ") and all(word in refused for word in words)


def test_a_data_set_of_latents_says_what_decodes_them() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="draws latents, and to make images of them needs the autoencoder 'ring-vae'"):
        decoder_of(PackedRingsConfig(global_batch=8), None, cpu, setting="--vae")
    assert decoder_of(RingsConfig(global_batch=8), None, cpu, setting="--vae") is None
    with pytest.raises(ConfigError, match="this model draws pixels .data.kind 'rings'."):
        decoder_of(RingsConfig(global_batch=8), "some", cpu, setting="--vae")
