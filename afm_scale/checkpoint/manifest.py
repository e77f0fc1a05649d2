"""What a checkpoint folder says about itself, and which folders of a run are complete.

    RUN/checkpoints/step_00001234/            visible names are complete checkpoints
        manifest.json                         lists every other file with its size and SHA-256
        SHA256SUMS                            written last; all sums and the manifest's own, for `sha256sum -c`
        .metadata  __0_0.distcp  ...          torch.distributed.checkpoint
    RUN/checkpoints/.step_00001234.*          unfinished, replaced or pruned; removed at the next start
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..core.errors import CheckpointError, TornError
from ..core.files import read_regular
from ..core.ranges import LARGEST_WHOLE, MANY, Range, Text
from ..core.run_folder import RunFolder
from ..core.strict_json import parse_json
from ..core.typed import Mistake, build, found
from .dtypes import DTYPES

FORMAT = "afm_scale checkpoint"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"
METADATA_NAME = ".metadata"
_MOST_SHOWN = 300  # letters of what is wrong
_MOST_ELEMENTS = 2**53  # of a tensor

TensorName = Annotated[str, Text(longest=1000, form=r"[^\x00-\x1f\x7f]+", words="a name")]
FileName = Annotated[str, Text(longest=255, form=r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]+", words="the name of a file there")]
Sha256 = Annotated[str, Text(longest=64, form="[0-9a-f]{64}", words="a SHA-256 in hex")]

OnTorn = Callable[[Path, str], None]
"""Called with each visible folder that was passed over, and why."""


def ignore_torn(path: Path, reason: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class TensorEntry:
    shape: Annotated[tuple[int, ...], Range(0, _MOST_ELEMENTS)]  # of the whole tensor, not of a shard
    dtype: Literal[tuple(DTYPES)]  # "float32"

    @classmethod
    def of(cls, tensor: Tensor) -> TensorEntry:
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    step: Annotated[int, Range(0, MANY)]  # completed updates of the learner: the generator, or the classifier
    created: Annotated[str, Text(longest=100)]  # ISO 8601, UTC
    world_size: Annotated[int, Range(1, MANY)]  # ranks that wrote it
    scalars: Mapping[str, Any]  # the part of the state that is not tensors
    tensors: Mapping[TensorName, TensorEntry]
    files: Mapping[FileName, Annotated[int, Range(0, LARGEST_WHOLE)]]  # -> bytes, without the manifest itself
    description: Mapping[str, Any]  # where it comes from (resolved configuration, versions); for people
    card: Mapping[str, Any] | None = None  # what it holds (`card.Card`); None in those from before there were cards
    sha256: Mapping[FileName, Sha256] | None = None  # of each of `files`; None in those from before there were sums


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def visible_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every folder under a final name, newest first, complete or not."""
    if not folder.is_dir():
        return []
    found = ((re.fullmatch(r"step_(\d{8,})", path.name), path) for path in folder.iterdir())
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def newest_complete(
    folder: Path, on_torn: OnTorn = ignore_torn, *, known_torn: Collection[Path] = ()
) -> Path | None:
    """The newest complete checkpoint in RUN/checkpoints; torn ones are reported to `on_torn` and passed over.

    No sum of a file is compared: those that are `known_torn` may look complete.
    """
    for _, path in visible_checkpoints(folder):
        problem = "it is damaged" if path in known_torn else problem_with(path)
        if problem is None:
            return path
        on_torn(path, problem)
    return None


def whole_manifest(path: Path) -> Manifest:
    """As `read_manifest`, whose every error means that this checkpoint is not whole: a TornError."""
    try:
        return read_manifest(path)
    except CheckpointError as error:
        raise TornError(str(error)) from error


def without_sums(manifest: Manifest) -> str:
    """To be added to what is said of a checkpoint: empty if it has sums."""
    return "" if manifest.sha256 is not None else "; no checksums (older checkpoint)"


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
    text = json.dumps(content, indent=1).encode()
    _write_synced(path / MANIFEST_NAME, text)
    if manifest.sha256 is not None:
        _write_synced(path / SUMS_NAME, _sums_text(text, manifest.sha256))
    sync_folder(path)


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sums_text(manifest: bytes, sha256: Mapping[str, str]) -> bytes:
    """What SHA256SUMS holds: the manifest's own sum first, then those of the files it lists."""
    own = hashlib.sha256(manifest).hexdigest()
    return "".join(f"{value}  {name}\n" for name, value in [(MANIFEST_NAME, own), *sha256.items()]).encode()


def sync_folder(path: Path) -> None:
    """Puts the names in a folder on the disk: without it a rename may be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a complete checkpoint, compared with its own sum; its files are checked by size alone.

    Raises CheckpointError if there is none, if it was written by something else or by a newer version, if it says what
    cannot be, or if a file it lists is missing or has another size.
    """
    file = path / MANIFEST_NAME
    try:
        if not path.is_dir():
            raise CheckpointError(
                f"{path} is not a folder; name a checkpoint such as RUN/checkpoints/{folder_name(1000)}"
            )
        text = read_regular(file)
        sums = _read_sums(path, text)
        content = parse_json(text)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} holds no {MANIFEST_NAME}: it is torn, or not a checkpoint of this program; name a complete one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; use an older checkpoint") from error
    except ValueError as error:
        raise damaged(file, error) from error
    manifest = _parse(path, content)
    _check_sums(path, text, manifest, sums)
    for name, expected in manifest.files.items():
        size = _size_of(path / name)
        if size != expected:
            state = "missing" if size is None else f"{size} bytes long"
            raise CheckpointError(f"{path} is torn: {name} is {state}, not {expected} bytes; use an older checkpoint")
    return manifest


def damaged(file: Path, error: Exception) -> TornError:
    """What to raise for a file that says of itself what cannot be."""
    reason = str(error)
    shown = reason if len(reason) <= _MOST_SHOWN else f"{reason[:_MOST_SHOWN]}..."
    return TornError(f"{file} is damaged ({shown}); use an older checkpoint")


def _size_of(file: Path) -> int | None:
    """Bytes of a regular file; None if there is none."""
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None


def _read_sums(path: Path, manifest: bytes) -> bytes | None:
    """SHA256SUMS, if it is of this manifest; None if there is none, as in older checkpoints."""
    try:
        sums = read_regular(path / SUMS_NAME)
    except FileNotFoundError:
        return None
    if not sums.startswith(_sums_text(manifest, {})):
        raise TornError(f"{path} is damaged: {MANIFEST_NAME} and {SUMS_NAME} do not fit; use an older checkpoint")
    return sums


def _check_sums(path: Path, text: bytes, manifest: Manifest, sums: bytes | None) -> None:
    """Whether there is a sum of every file, and SHA256SUMS says the same."""
    if manifest.sha256 is None and sums is None:
        return
    if sums is None:
        raise TornError(f"{path} is torn: {SUMS_NAME} is missing; use an older checkpoint")
    sha256 = manifest.sha256 or {}
    if sha256.keys() != manifest.files.keys() or sums != _sums_text(text, sha256):
        raise TornError(f"{path} is damaged: {SUMS_NAME} is not what {MANIFEST_NAME} says; use an older checkpoint")


def _parse(path: Path, content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST_NAME} was not written by this program ('format' is not '{FORMAT}'); "
            "name a checkpoint of one of its runs"
        )
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {found(version)}, this program reads format {FORMAT_VERSION}; "
            "use the version of the program that wrote it"
        )
    try:
        manifest = build(Manifest, {key: content[key] for key in content.keys() - {"format", "format_version"}})
    except Mistake as error:
        raise damaged(path / MANIFEST_NAME, error) from error
    claimed, there = sum(entry.num_bytes for entry in manifest.tensors.values()), sum(manifest.files.values())
    if claimed > there:  # before memory is asked for
        raise damaged(path / MANIFEST_NAME, ValueError(
            f"its tensors have {claimed:,} bytes, its files {there:,}, and nothing in them is compressed"
        ))
    return manifest
