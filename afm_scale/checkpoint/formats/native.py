"""This program's own checkpoints: a folder of any plan's and any world size's, or a run's folder for its newest one."""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ...core.errors import CheckpointError, TornError
from ...core.files import open_regular
from ..card import card_in, to_plain
from ..falling_back import candidates, of_newest_whole
from ..manifest import Manifest, TensorEntry, damaged, problem_with, whole_manifest, without_sums, write_manifest
from ..metadata import Chunk
from ..reader import Reader
from ..stored import read_chunk
from ..sums import OneThread, compare
from ..writer import Writer, system_error
from .format import About, Lazy, Source, Told, Wanted
from .output import new_folder


@dataclass(frozen=True)
class Native:
    """A checkpoint's folder, or a run's."""

    name: str = "native"

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and any(problem_with(found) is None for found in candidates(path))

    def source(self, path: Path, told: Told) -> Source:
        passed_over: list[str] = []
        source = of_newest_whole(
            path, candidates(path), _opened, lambda found, reason: passed_over.append(f"passed over torn: {reason}"),
            do="Name another run or another checkpoint",
        )
        return source.with_notes(*passed_over)

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        card, about = source.card(), source.about
        planned = {
            name: torch.empty(lazy.entry.shape, dtype=lazy.entry.torch_dtype, device="meta")
            for name, lazy in source.tensors.items()
        }
        with new_folder(out) as partial, OneThread("sums of a conversion") as beside, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            writer = _StreamingWriter(partial, beside, source)
            try:
                dcp.save(planned, storage_writer=writer, no_dist=True)
            except CheckpointException as error:  # torch's own, which hides what happened
                (cause, _), = error.failures.values()
                raise cause from None
            sums = dict(sorted(writer.sums.items()))
            write_manifest(partial, Manifest(
                step=about.step, created=datetime.now(timezone.utc).isoformat(), world_size=1,
                scalars=json.loads(json.dumps(about.scalars or {})), tensors=source.entries,
                files={name: (partial / name).stat().st_size for name in sums}, description=dict(about.description),
                card=json.loads(json.dumps(to_plain(card))), sha256=sums,
            ))


NATIVE = Native()

_FILE = "__0_0.distcp"  # as torch names the first rank's


class _StreamingWriter(Writer):
    """torch's own keeps every tensor that it has written until the end; this one lets go of each."""

    def __init__(self, folder: Path, beside: Executor, source: Source) -> None:
        super().__init__(folder, beside, pieces_behind=2)
        self._source = source

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        written = []
        with self.fs.create_stream(Path(self.path) / _FILE, "wb") as stream:
            for item in plan.items:
                begins, tensor = stream.tell(), self._source.read(item.index.fqn)
                has_more = tensor.untyped_storage().nbytes() != tensor.nbytes  # torch writes all of it
                try:
                    torch.save(tensor.clone() if has_more else tensor, stream)
                except Exception as error:  # a full disk's is hidden in one of torch's
                    raise system_error(error) or error from None
                length = stream.tell() - begins
                written.append(WriteResult(item.index, length, _StorageInfo(_FILE, begins, length)))
                del tensor
            stream.flush()
            os.fsync(stream.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(written)
        return done


def _opened(path: Path) -> Source:
    """Raises TornError if it is not whole, of which the sums of its files are a part."""
    manifest = whole_manifest(path)
    try:
        card = card_in(path, manifest)
    except CheckpointError as error:
        raise TornError(str(error)) from error
    compare(path, manifest.sha256 or {})
    reader = Reader(path, manifest)
    with ExitStack() as opening:
        files: dict[str, BinaryIO] = {}
        parts: dict[str, list[tuple[tuple[int, ...], Chunk]]] = {name: [] for name in manifest.tensors}
        for index, chunk in reader.read_metadata().storage_data.items():
            if chunk.file not in files:
                files[chunk.file] = opening.enter_context(open_regular(path / chunk.file))
            parts[index.fqn].append((tuple(index.offset or ()), chunk))
        tensors = {
            name: Lazy(entry, _reader(path, name, entry, parts[name], files, manifest.sha256 is not None))
            for name, entry in manifest.tensors.items()
        }
        closing = opening.pop_all()
    about = About(
        card=card, step=manifest.step, scalars=manifest.scalars, description=manifest.description,
        world_size=manifest.world_size, notes=() if manifest.sha256 else (f"{path}{without_sums(manifest)}",),
    )
    return Source(path, tensors, about, closing.close)


def _reader(
    path: Path, name: str, entry: TensorEntry, parts: list[tuple[tuple[int, ...], Chunk]],
    files: dict[str, BinaryIO], is_compared: bool,
) -> Any:
    def read() -> Tensor:
        try:
            stored = (read_chunk(files[chunk.file], chunk, is_compared=is_compared) for _, chunk in parts)
            if len(parts) == 1:
                return next(stored).contiguous()
            whole = torch.empty(entry.shape, dtype=entry.torch_dtype)
            for (offsets, chunk), part in zip(parts, stored, strict=True):
                whole[tuple(slice(o, o + size) for o, size in zip(offsets, chunk.sizes, strict=True))] = part
            return whole
        except (OSError, ValueError) as error:
            raise damaged(path, ValueError(f"{name:.80}: {error}")) from error

    return read
