"""What a checkpoint folder says about itself, and which folders of a run are complete.

    RUN/checkpoints/step_00001234/            visible names are complete checkpoints
        manifest.json                         written last; lists every other file with its size
        .metadata  __0_0.distcp  ...          torch.distributed.checkpoint
    RUN/checkpoints/.step_00001234.*          unfinished, replaced or pruned; removed at the next start
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.run_folder import RunFolder

FORMAT = "afm_scale checkpoint"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"

OnTorn = Callable[[Path, str], None]
"""Called with each visible folder that was passed over, and why."""


def ignore_torn(path: Path, reason: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class TensorEntry:
    shape: tuple[int, ...]  # of the whole tensor, not of a shard
    dtype: str  # "float32"

    @classmethod
    def of(cls, tensor: Tensor) -> TensorEntry:
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    step: int  # completed updates of the learner: the generator, or the classifier that is trained
    created: str  # ISO 8601, UTC
    world_size: int  # ranks that wrote it
    scalars: Mapping[str, Any]  # the part of the state that is not tensors
    tensors: Mapping[str, TensorEntry]
    files: Mapping[str, int]  # name -> bytes, without the manifest itself
    description: Mapping[str, Any]  # where it comes from (resolved configuration, versions); for people
    card: Mapping[str, Any] | None = None  # what it holds (`card.Card`); None in those from before there were cards


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def visible_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every folder under a final name, newest first, complete or not."""
    if not folder.is_dir():
        return []
    found = ((re.fullmatch(r"step_(\d{8,})", path.name), path) for path in folder.iterdir())
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def newest_complete(folder: Path, on_torn: OnTorn = ignore_torn) -> Path | None:
    """The newest complete checkpoint in RUN/checkpoints; torn ones are reported to `on_torn` and passed over."""
    for _, path in visible_checkpoints(folder):
        problem = problem_with(path)
        if problem is None:
            return path
        on_torn(path, problem)
    return None


def problem_with(path: Path) -> str | None:
    """Why a folder cannot be used as a checkpoint; None if it is complete."""
    try:
        read_manifest(path)
    except CheckpointError as error:
        return str(error)
    return None


def resolve_checkpoint(path: Path, on_torn: OnTorn = ignore_torn) -> Path:
    """The checkpoint a user means by `path`: itself, or the newest complete one if it is a run's folder.

    Raises CheckpointError if a run's folder holds no complete checkpoint.
    """
    of_run = RunFolder(path).checkpoints
    folder = of_run if of_run.is_dir() else path
    if folder == path and not visible_checkpoints(path):
        return path
    newest = newest_complete(folder, on_torn)
    if newest is None:
        raise CheckpointError(f"{folder} holds no complete checkpoint; name another run or another checkpoint")
    return newest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Into a checkpoint folder that is otherwise complete. Synced to the disk, like the folder's list of names."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION} | asdict(manifest)
    with open(path / MANIFEST_NAME, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path)


def sync_folder(path: Path) -> None:
    """Puts the names in a folder on the disk: without it a rename may be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a complete checkpoint, its files checked by size.

    Raises CheckpointError if there is none, if it was written by something else or by a newer version, or if a file
    it lists is missing or has another size.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; name a checkpoint such as RUN/checkpoints/{folder_name(1000)}")
    try:
        content = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} holds no {MANIFEST_NAME}: it is torn, or not a checkpoint of this program; name a complete one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path / MANIFEST_NAME} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path / MANIFEST_NAME} is damaged ({error}); use an older checkpoint") from error
    manifest = _parse(path, content)
    for name, expected in manifest.files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected:
            found = "missing" if size is None else f"{size} bytes long"
            raise CheckpointError(f"{path} is torn: {name} is {found}, not {expected} bytes; use an older checkpoint")
    return manifest


def _parse(path: Path, content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST_NAME} was not written by this program ('format' is not '{FORMAT}'); "
            "name a checkpoint of one of its runs"
        )
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this program reads format {FORMAT_VERSION}; "
            "use the version of the program that wrote it"
        )
    try:
        entries = {
            name: TensorEntry(tuple(entry["shape"]), entry["dtype"]) for name, entry in content["tensors"].items()
        }
        return Manifest(
            step=content["step"], created=content["created"], world_size=content["world_size"],
            scalars=content["scalars"], tensors=entries, files=content["files"], description=content["description"],
            card=content.get("card"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST_NAME} is damaged ({error!r}); use an older checkpoint") from error
