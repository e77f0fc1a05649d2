"""What `dcp.load` reads a checkpoint through: every byte by this program's own readers, none by torch's unpicklers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.futures import Future

from ..core.errors import CheckpointError
from ..core.files import open_regular
from .manifest import Manifest
from .metadata import Chunk, read_metadata
from .stored import read_chunk


class Reader(dcp.StorageReader):
    """Of one checkpoint, whose manifest has been read and whose metadata are read and checked at once.

    Raises TornError for metadata that are damaged (`metadata.read_metadata`).
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._metadata = read_metadata(path, manifest)
        self._are_compared = manifest.sha256 is not None  # with better sums than those inside of the files

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        """Raises CheckpointError for bytes that are not the tensor which is said to lie there."""
        by_file: dict[str, list[tuple[Chunk, ReadItem]]] = {}
        for item in plan.items:
            chunk = self._metadata.storage_data[item.storage_index]
            by_file.setdefault(chunk.file, []).append((chunk, item))
        for name, wanted in by_file.items():
            with open_regular(self._path / name) as file:
                for chunk, item in sorted(wanted, key=lambda pair: pair[0].offset):
                    try:
                        _fill(planner, item, read_chunk(file, chunk, is_compared=self._are_compared))
                    except ValueError as error:
                        raise CheckpointError(f"{item.storage_index.fqn} in {name}: {error}") from error
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read_metadata(self) -> dcp.Metadata:
        return self._metadata

    def set_up_storage_reader(self, metadata: dcp.Metadata, is_coordinator: bool) -> None:
        """Nothing: it was made for one checkpoint."""

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        """Nothing, as above."""

    def prepare_local_plan(self, plan: dcp.LoadPlan) -> dcp.LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[dcp.LoadPlan]) -> list[dcp.LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False  # it is never chosen by a path


def _fill(planner: dcp.LoadPlanner, item: ReadItem, stored: Tensor) -> None:
    assert item.type == LoadItemType.TENSOR  # the other kind is a pickle, and no metadata with one come so far
    for dimension, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        stored = stored.narrow(dimension, offset, length)
    target = planner.resolve_tensor(item).detach()
    target.copy_(stored)
    planner.commit_tensor(item, target)
