"""Reads the tensors of a checkpoint: into a model laid out in any way, as plain CPU tensors, or as one number."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ..core.errors import CheckpointError
from .manifest import Manifest, TensorEntry, read_manifest

_MISMATCHES_SHOWN = 3
_DIGEST_CHUNK_BYTES = 256 * 2**20  # of tensors held in memory at once


def load_into(path: Path, tensors: Mapping[str, Tensor], *, spare: str | None = None) -> Mapping[str, Any]:
    """Fills the tensors in place and returns the scalars saved with them.

    The tensors may be plain or DTensors, over any number of ranks. Collective if there is a process group. Raises
    CheckpointError, on all ranks alike and before anything is touched, if the checkpoint is torn or if the names,
    shapes and dtypes are not exactly those of the checkpoint; names that end in `spare` may be left unread.
    """
    try:
        manifest = read_manifest(path)
        _check_fits(path, manifest, tensors, spare)
        finding = (manifest.created, "")
    except CheckpointError as error:
        finding = ("", str(error))
    _check_agreement(path, finding)
    _load(path, tensors, alone=not dist.is_initialized())
    return manifest.scalars


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, whole and on the CPU, by their full names. Needs no other rank."""
    manifest = read_manifest(path)
    return _read(path, manifest, (name for name in manifest.tensors if name.startswith(prefix)))


def digest(path: Path, prefix: str = "") -> str:
    """SHA-256 (hex) over the tensors whose names begin with `prefix`, in that order: name, dtype, shape, values.

    It depends neither on how the tensors were sharded nor on the scalars.
    """
    manifest = read_manifest(path)
    sha = hashlib.sha256()
    for names in _chunks(manifest, prefix):
        for name, tensor in _read(path, manifest, names).items():
            entry = manifest.tensors[name]
            sha.update(json.dumps([name, entry.dtype, entry.shape]).encode() + b"\n")
            sha.update(tensor.flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def first_mismatch(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first name at which weights do not fit a network, and how; None if all fit."""
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    needed = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    for name in sorted(found | needed):
        if found.get(name) != needed.get(name):
            return f"{name} is {found.get(name, 'missing')} there, {needed.get(name, 'not wanted')} here"
    return None


def _chunks(manifest: Manifest, prefix: str) -> Iterator[list[str]]:
    """Sorted names in groups that fit into memory."""
    names: list[str] = []
    num_bytes = 0
    for name in sorted(name for name in manifest.tensors if name.startswith(prefix)):
        if names and num_bytes + manifest.tensors[name].num_bytes > _DIGEST_CHUNK_BYTES:
            yield names
            names, num_bytes = [], 0
        names.append(name)
        num_bytes += manifest.tensors[name].num_bytes
    yield names


def _read(path: Path, manifest: Manifest, names: Iterable[str]) -> dict[str, Tensor]:
    entries = {name: manifest.tensors[name] for name in names}
    tensors = {name: torch.empty(entry.shape, dtype=entry.torch_dtype) for name, entry in entries.items()}
    _load(path, tensors, alone=True)
    return tensors


def _load(path: Path, tensors: Mapping[str, Tensor], *, alone: bool) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            dcp.load(dict(tensors), storage_reader=dcp.FileSystemReader(path), no_dist=alone)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(
            f"{path} cannot be read (rank {rank}: {cause}); use an older checkpoint of this run"
        ) from error


def _check_fits(path: Path, manifest: Manifest, tensors: Mapping[str, Tensor], spare: str | None) -> None:
    here = {name: TensorEntry.of(tensor) for name, tensor in tensors.items()}
    mismatches = [
        f"{name} is {manifest.tensors.get(name, 'absent')} in the checkpoint, {here.get(name, 'absent')} in this model"
        for name in sorted(here.keys() | manifest.tensors.keys())
        if here.get(name) != manifest.tensors.get(name)
        and not (name not in here and spare is not None and name.endswith(spare))
    ]
    if mismatches:
        shown = "; ".join(mismatches[:_MISMATCHES_SHOWN])
        more = len(mismatches) - _MISMATCHES_SHOWN
        raise CheckpointError(
            f"{path} does not fit this model: {shown}{f'; and {more} more' if more > 0 else ''}. "
            "Was it saved by another model or optimizer? Use the recipe it was saved with, or another run.folder."
        )


def _check_agreement(path: Path, finding: tuple[str, str]) -> None:
    """Raises on every rank if one cannot use the checkpoint or if they see different ones under the same name."""
    findings = [finding]
    if dist.is_initialized():
        findings = [finding] * dist.get_world_size()
        dist.all_gather_object(findings, finding)
    for _, problem in findings:
        if problem:
            raise CheckpointError(problem)
    if len(set(findings)) > 1:
        raise CheckpointError(f"the ranks see different checkpoints under {path}; all nodes must share the folder")
