"""Reads the tensors of a checkpoint: into a model laid out in any way, as plain CPU tensors, or as one number."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from ..core.errors import CheckpointError, TornError
from ..core.typed import Mistake
from .manifest import MANIFEST_NAME, METADATA_NAME, Manifest, TensorEntry, damaged, read_manifest, whole_manifest
from .reader import Reader
from .sums import compare, comparing, share_of

T = TypeVar("T")

_MISMATCHES_SHOWN = 3
_DIGEST_CHUNK_BYTES = 256 * 2**20  # of tensors held in memory at once


def load_into(
    path: Path, tensors: Mapping[str, Tensor], *, spare: tuple[str, ...] = (),
    scalars: Callable[[Manifest], T] = lambda manifest: manifest.scalars,
) -> T:
    """Fills the tensors in place and returns the scalars saved with them.

    The tensors may be plain or DTensors, over any number of ranks. Collective if there is a process group; the ranks
    share the work of comparing the files with their sums. Raises on all ranks alike: TornError if the checkpoint is not
    whole, which may leave some of its values in the tensors; CheckpointError, before anything is touched, if the names,
    shapes and dtypes are not exactly those of the checkpoint. Names that end in one of `spare` may be left unread.

    Args:
        scalars: makes the result of the manifest; a Mistake means that it is damaged, before anything is touched.
    """

    def look() -> tuple[Manifest, Reader, T]:
        manifest = whole_manifest(path)
        reader = _opened(path, manifest)
        _check_fits(path, manifest, tensors, spare)
        return manifest, reader, _scalars(path, manifest, scalars)

    def read() -> None:
        with comparing(path, _sums_of(manifest, share_of(manifest.files, rank, world_size))):
            _load(path, reader, tensors, alone=not dist.is_initialized())

    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    manifest, reader, found = _on_all_alike(path, look, lambda seen: seen[0].created)
    _on_all_alike(path, read)
    return found


def _opened(path: Path, manifest: Manifest) -> Reader:
    compare(path, _sums_of(manifest, [METADATA_NAME]))
    return Reader(path, manifest)


def _scalars(path: Path, manifest: Manifest, scalars: Callable[[Manifest], T]) -> T:
    try:
        return scalars(manifest)
    except Mistake as error:
        raise damaged(path / MANIFEST_NAME, error) from error


def compare_on_all(path: Path) -> None:
    """Compares all files of a checkpoint with their sums; the ranks share the work. Raises TornError, on all alike."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    manifest = _on_all_alike(path, lambda: whole_manifest(path), lambda manifest: manifest.created)
    _on_all_alike(path, lambda: compare(path, _sums_of(manifest, share_of(manifest.files, rank, world_size))))


def read_tensors(path: Path, prefix: str = "", *, is_compared: bool = False) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, whole and on the CPU, by their full names. Needs no other rank.

    All files are compared with their sums meanwhile, unless that has been done. Raises TornError if it is not whole.
    """
    manifest = whole_manifest(path)
    reader = _opened(path, manifest)
    with comparing(path, {} if is_compared else _sums_of(manifest)):
        return _read(path, manifest, reader, (name for name in manifest.tensors if name.startswith(prefix)))


def digest(path: Path, prefix: str = "") -> str:
    """SHA-256 (hex) over the tensors whose names begin with `prefix`, in that order: name, dtype, shape, values.

    It depends neither on how the tensors were sharded nor on the scalars.
    """
    manifest = whole_manifest(path)
    reader = _opened(path, manifest)
    sha = hashlib.sha256()
    with comparing(path, _sums_of(manifest)):
        for names in _chunks(manifest, (name for name in manifest.tensors if name.startswith(prefix))):
            for name, tensor in _read(path, manifest, reader, names).items():
                entry = manifest.tensors[name]
                sha.update(json.dumps([name, entry.dtype, entry.shape]).encode() + b"\n")
                sha.update(tensor.flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def first_difference(path: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor whose bits are others in the checkpoint; None if all are the same.

    Needs no other rank: of a DTensor it compares this rank's part. Raises CheckpointError if they cannot be read.
    """
    manifest = read_manifest(path)
    reader = Reader(path, manifest)
    for names in _chunks(manifest, tensors):
        found = {name: torch.empty_like(tensors[name]) for name in names}
        _load(path, reader, found, alone=True)
        for name in names:
            if not torch.equal(_bits(found[name]), _bits(tensors[name])):
                return name
    return None


def _bits(tensor: Tensor) -> Tensor:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().flatten().view(torch.uint8)


def first_mismatch(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first name at which weights do not fit a network, and how; None if all fit."""
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    needed = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    for name in sorted(found | needed):
        if found.get(name) != needed.get(name):
            return f"{name} is {found.get(name, 'missing')} there, {needed.get(name, 'not wanted')} here"
    return None


def _chunks(manifest: Manifest, names: Iterable[str]) -> Iterator[list[str]]:
    """Sorted names in groups that fit into memory."""
    group: list[str] = []
    num_bytes = 0
    for name in sorted(names):
        if group and num_bytes + manifest.tensors[name].num_bytes > _DIGEST_CHUNK_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append(name)
        num_bytes += manifest.tensors[name].num_bytes
    yield group


def _sums_of(manifest: Manifest, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of these files, or of all; empty for an older checkpoint, which has none."""
    sha256 = manifest.sha256 or {}
    return {name: sha256[name] for name in (sha256 if names is None else names) if name in sha256}


def _read(path: Path, manifest: Manifest, reader: Reader, names: Iterable[str]) -> dict[str, Tensor]:
    entries = {name: manifest.tensors[name] for name in names}
    tensors = {name: torch.empty(entry.shape, dtype=entry.torch_dtype) for name, entry in entries.items()}
    _load(path, reader, tensors, alone=True)
    return tensors


def _load(path: Path, reader: Reader, tensors: Mapping[str, Tensor], *, alone: bool) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            dcp.load(dict(tensors), storage_reader=reader, no_dist=alone)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise TornError(
            f"{path} cannot be read (rank {rank}: {cause}); use an older checkpoint of this run"
        ) from error


def _check_fits(path: Path, manifest: Manifest, tensors: Mapping[str, Tensor], spare: tuple[str, ...]) -> None:
    here = {name: TensorEntry.of(tensor) for name, tensor in tensors.items()}
    mismatches = [
        f"{name} is {manifest.tensors.get(name, 'absent')} in the checkpoint, {here.get(name, 'absent')} in this model"
        for name in sorted(here.keys() | manifest.tensors.keys())
        if here.get(name) != manifest.tensors.get(name)
        and not (name not in here and name.endswith(spare))
    ]
    if mismatches:
        shown = "; ".join(mismatches[:_MISMATCHES_SHOWN])
        more = len(mismatches) - _MISMATCHES_SHOWN
        raise CheckpointError(
            f"{path} does not fit this model: {shown}{f'; and {more} more' if more > 0 else ''}. "
            "Was it saved by another model or optimizer? Use the recipe it was saved with, or another run.folder."
        )


def _on_all_alike(
    path: Path, work: Callable[[], T], seen: Callable[[T], str] = lambda result: ""
) -> T:
    """The result of `work` on this rank. Raises the same CheckpointError on every rank if it raised one on any, or if
    they have `seen` different things: then they look at different checkpoints under the same name."""
    result, error = None, None
    try:
        result = work()
    except CheckpointError as caught:
        error = caught
    finding = ("" if error is not None else seen(result), error)
    findings = [finding]
    if dist.is_initialized():
        findings = [finding] * dist.get_world_size()
        dist.all_gather_object(findings, finding)
    for _, problem in findings:
        if problem is not None:
            raise problem
    if len({what for what, _ in findings}) > 1:
        raise CheckpointError(f"the ranks see different checkpoints under {path}; all nodes must share the folder")
    return result
