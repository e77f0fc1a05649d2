"""Every reader of checkpoints is given one that carries a program: none runs it, each ends with one message."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

import afm_scale
from afm_scale.__main__ import main
from afm_scale.checkpoint.manifest import read_manifest
from afm_scale.checkpoint.metadata import read_metadata
from afm_scale.commands.ending import tell
from afm_scale.core.errors import EXIT_USER_ERROR, CheckpointError

from .planting import OLD, Planted, copy_of, plant_in_metadata

RUNS = json.loads((OLD / "about.json").read_text())["runs"]


def trained(recipe: str, folder: Path, *settings: str) -> int:
    about = RUNS["afm"]
    words = [recipe, *about["overrides"], f"run.folder={folder}", "parallel.device=cpu", "loop.steps=4"]
    return main(["train", *words, *settings])


def loaded(run: Path) -> int:
    with pytest.raises(CheckpointError) as caught:
        afm_scale.load(run, device="cpu")
    return tell(caught.value)


READERS: dict[str, tuple[str, Callable[[Path, Path], int]]] = {  # whose checkpoint, and who reads it: (run, new folder)
    "resume": ("afm", lambda run, new: trained("digits_afm", run)),
    "resume_from": ("afm", lambda run, new: trained("digits_afm", new, f"run.resume_from={run}")),
    "initialise_from": (
        "afm", lambda run, new: trained("digits_afm", new, f"run.initialise_from={run}"),
    ),
    "sample": ("flow_matching", lambda run, new: main(["sample", str(run), "--out", str(new), "--num", "2"])),
    "evaluate": ("afm", lambda run, new: main([
        "evaluate", str(run), "--features", "classifier", "--weights", str(OLD / "classifier"), "--num", "20",
        "--write-reference", str(new / "statistics.npz"),
    ])),
    "the features of a classifier": ("classifier", lambda run, new: main([
        "evaluate", str(OLD / "afm"), "--features", "classifier", "--weights", str(run), "--num", "20",
        "--write-reference", str(new / "statistics.npz"),
    ])),
    "inspect_checkpoint": ("afm", lambda run, new: main(["inspect_checkpoint", str(run), "--digest"])),
    "a classifier that guides": ("classifier", lambda run, new: trained(
        "digits_afm_guided", new, f"model.classifier.weights={run}", "model.classifier.hidden_size=8",
        "model.classifier.depth=1", "model.classifier.num_heads=2",
    )),
    "a flow that guides": ("flow_matching", lambda run, new: trained(
        "digits_afm", new, f"model.flow={run}", "objective.guidance={kind: velocity, weight: 1.0, low: 0.0, high: 0.5}",
    )),
    "load": ("afm", lambda run, new: loaded(run)),
}


def plant_in_a_tensor(checkpoint: Path, marker: Path) -> None:
    """In the place of a tensor that every reader reads."""
    chunks = read_metadata(checkpoint, read_manifest(checkpoint)).storage_data
    place = next(chunk for index, chunk in chunks.items() if index.fqn == "average.x_embedder.proj.weight")
    data = bytearray((checkpoint / place.file).read_bytes())
    data[place.offset : place.offset + place.length] = archive_of(Planted(marker), place.length)
    (checkpoint / place.file).write_bytes(data)


def archive_of(planted: Planted, length: int) -> bytes:
    """As torch.save would write it, filled up to a length."""
    for filling in range(length):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as members:
            members.writestr("archive/data.pkl", pickle.dumps(planted, protocol=2))
            members.writestr("archive/byteorder", b"little")
            members.writestr("archive/data/0", bytes(filling))
        if len(file.getvalue()) == length:
            return file.getvalue()
    raise AssertionError("there is no room for it")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("plant", [plant_in_metadata, plant_in_a_tensor])
def test_a_planted_object_is_never_made(
    reader: str, plant: Callable[[Path, Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, read = READERS[reader]
    checkpoint = copy_of(name, tmp_path / "run")
    plant(checkpoint, tmp_path / "made")
    (tmp_path / "new").mkdir()
    assert read(tmp_path / "run", tmp_path / "new") == EXIT_USER_ERROR
    assert not (tmp_path / "made").exists()
    told = capsys.readouterr().err
    assert "mkdir, which no checkpoint of torch's needs" in told and "Traceback" not in told


def test_torch_itself_would_have_made_it(tmp_path: Path) -> None:
    checkpoint = copy_of("afm", tmp_path / "run")
    plant_in_metadata(checkpoint, tmp_path / "made")
    dcp.FileSystemReader(checkpoint).read_metadata()
    assert (tmp_path / "made").exists()
