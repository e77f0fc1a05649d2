"""A run that is started again with other settings: what changed is said and kept, what cannot go on touches nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from afm_scale.__main__ import main
from afm_scale.checkpoint.manifest import read_manifest, resolve_checkpoint
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR
from afm_scale.core.run_folder import RunFolder
from afm_scale.data.description import read_description, write_description
from tests.data.small import packed_images

from .program import QUIET, SMALL_AFM, SMALL_GENERATOR

pytestmark = pytest.mark.slow

PACKED = ("digits_flow_matching", *SMALL_GENERATOR, *QUIET, "model.generator.patch_size=4")
Files = dict[str, bytes]


def go(folder: Path, *overrides: str, recipe: tuple[str, ...] = SMALL_AFM) -> int:
    words = ("checkpoint.every_steps=100", "parallel.device=cpu", f"run.folder={folder}")
    return main(["train", *recipe, *words, *overrides])


def files_in(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert go(folder, "loop.steps=2") == EXIT_DONE
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "own"))


def test_what_changed_is_said_and_noted_and_earlier_settings_are_kept(
    own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = (own / "config.yaml").read_bytes()
    assert go(own, "loop.steps=3", "loop.seed=5") == EXIT_DONE
    told = capfd.readouterr().err
    assert "changed: loop.seed: 0 -> 5\n" in told and "changed: loop.steps: 2 -> 3\n" in told
    assert told.count("changed: ") == 3  # and run.folder, because it was copied
    (event,) = [event for event in RunFolder(own).read_events() if event["kind"] == "settings"]
    assert event["step"] == 2
    assert {"key": "loop.seed", "old": 0, "new": 5} in event["changes"]
    assert (own / "config.step_00000002.yaml").read_bytes() == first
    assert yaml.safe_load((own / "config.yaml").read_bytes())["loop"] == {"steps": 3, "accumulation": 1, "seed": 5}

    assert go(own, "loop.steps=3", "loop.seed=5") == EXIT_DONE
    assert "changed: " not in capfd.readouterr().err
    assert go(own, "loop.steps=3", "loop.seed=6") == go(own, "loop.steps=3", "loop.seed=7") == EXIT_DONE
    kept = {path.name for path in own.glob("config*.yaml")}
    assert kept == {
        "config.yaml", "config.step_00000002.yaml", "config.step_00000003.yaml", "config.step_00000003.2.yaml"
    }


def test_a_network_that_fits_but_is_another_is_refused_before_anything_is_touched(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files_in(own)
    heads = ("loop.steps=3", "model.generator.num_heads=4")
    assert go(own, *heads) == EXIT_USER_ERROR
    told = capfd.readouterr().err
    assert "model.generator.num_heads: 2 -> 4" in told and "run.accept_changes=[model.generator.num_heads]" in told
    after = files_in(own)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() <= {".lock"}

    assert go(tmp_path / "other", *heads, f"run.resume_from={own}") == EXIT_USER_ERROR
    assert "model.generator.num_heads" in capfd.readouterr().err
    assert go(own, *heads, "run.accept_changes=[model.generator.num_heads]") == EXIT_DONE
    assert go(own, *heads) == EXIT_DONE  # once accepted, it is the run's


def test_data_packed_anew_or_with_classes_in_another_order_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed"
    packed_images(packed, size=8)
    data = f"data={{kind: webdataset, workers: 1, global_batch: 4, folder: {packed}}}"
    run = tmp_path / "run"
    assert go(run, data, "loop.steps=1", recipe=PACKED) == EXIT_DONE
    moved = shutil.copytree(packed, tmp_path / "moved")
    there = data.replace(str(packed), str(moved))
    assert go(run, there, "loop.steps=2", recipe=PACKED) == EXIT_DONE
    assert "changed: data.folder: " in capfd.readouterr().err

    description = read_description(moved)
    write_description(moved, replace(description, class_names=description.class_names[::-1]))
    assert go(run, there, "loop.steps=3", recipe=PACKED) == EXIT_USER_ERROR
    told = capfd.readouterr().err
    assert "data.fingerprint.classes" in told and "another order" in told
    accepted = "run.accept_changes=[data.fingerprint]"
    assert go(run, there, "loop.steps=3", accepted, recipe=PACKED) == EXIT_DONE


def test_a_run_has_an_id_of_its_own_wherever_it_lies(trained: Path, tmp_path: Path) -> None:
    """Its folder may be moved; another run at its path is another run."""
    moved = Path(shutil.copytree(trained, tmp_path / "moved"))
    born = (moved / "id").read_text().strip()
    assert len(born) == 16 and read_manifest(resolve_checkpoint(moved)).description["run"] == born
    (moved / "id").unlink()
    assert go(moved, "loop.steps=3") == EXIT_DONE
    assert (moved / "id").read_text().strip() == born

    shutil.rmtree(moved / "checkpoints")
    assert go(moved, "loop.steps=1") == EXIT_DONE
    assert (moved / "id").read_text().strip() != born
    (moved / "id").write_text("no id")
    assert go(moved, "loop.steps=2") == EXIT_USER_ERROR
