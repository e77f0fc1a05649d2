"""Checkpoints with something in them that must not be there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afm_scale.checkpoint.manifest import MANIFEST_NAME, METADATA_NAME

OLD = Path(__file__).resolve().parents[1] / "golden" / "checkpoints"  # see about.json there


class Planted:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._marker),)


def copy_of(name: str, folder: Path) -> Path:
    """A copy of one of the old runs, and of its checkpoint."""
    shutil.copytree(OLD / name, folder)
    (checkpoint,) = (folder / "checkpoints").iterdir()
    return checkpoint


def edit_manifest(checkpoint: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = checkpoint / MANIFEST_NAME
    content = json.loads(file.read_bytes())
    edit(content)
    file.write_text(json.dumps(content))


def replace_file(checkpoint: Path, name: str, content: bytes) -> None:
    """And tells the manifest its length."""
    (checkpoint / name).write_bytes(content)
    edit_manifest(checkpoint, lambda manifest: manifest["files"].update({name: len(content)}))


def edit_metadata(checkpoint: Path, edit: Callable[[Any], object]) -> None:
    metadata = pickle.loads((checkpoint / METADATA_NAME).read_bytes())  # of this repository's own files
    edit(metadata)
    replace_file(checkpoint, METADATA_NAME, pickle.dumps(metadata))


def plant_in_metadata(checkpoint: Path, marker: Path) -> None:
    edit_metadata(checkpoint, lambda metadata: metadata.planner_data.update({"x": Planted(marker)}))
