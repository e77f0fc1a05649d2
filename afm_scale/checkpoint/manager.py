"""Saves a run's state in the background, so that a kill at any instant leaves complete checkpoints only.

save() copies the tensors and returns; a thread on every rank then writes its shards into a hidden folder
(torch.distributed.checkpoint), and rank 0 adds the manifest and renames the folder to its final name. The ranks
coordinate over a gloo group of their own, never over the group that training is using meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent import futures
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.files import remedy
from ..core.ranges import Count, Range
from ..core.words import IN_BACKGROUND
from .card import Card, to_plain
from .keeping import Keeping, hidden_folder
from .manifest import (
    Manifest,
    OnTorn,
    TensorEntry,
    folder_name,
    ignore_torn,
    sync_folder,
    write_manifest,
)
from .sums import OneThread, comparing
from .tensors import first_difference
from .writer import Writer, system_error

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep: the newest `keep_last`, and every step that `keep_every_steps` divides.

    `verify` says which saves are read back from the disk and compared with memory before they are relied on: the first
    one of every process, every one, or none.
    """

    every_steps: Count  # how often a run saves
    keep_last: Annotated[int, Range(1, 1_000_000)] = 3  # newest checkpoints that stay
    keep_every_steps: Count | None = None  # those of every so many steps stay too; null: none
    asynchronous: bool = True  # False: save() returns when the checkpoint is on the disk
    verify: Literal["first", "every", "never"] = "first"  # which saves are read back before they are relied on


class CheckpointManager:
    """The checkpoints of one run, in RUN/checkpoints. Every method but `latest` and `poll` is called on all ranks."""

    def __init__(
        self, folder: Path, config: CheckpointConfig, *, rank: int, world_size: int, description: Mapping[str, Any],
        card: Card | None = None, wanted: Callable[[], Collection[int]] | None = None,
    ) -> None:
        """Creates the folder, and ends what a killed run had begun; `description` and card go into every manifest.

        `wanted`, which rank 0 asks after every save, names the steps that stay in the place of what `config` keeps.

        Raises CheckpointError if the folder cannot be written.
        """
        self._folder = folder
        self._config = config
        self._rank = rank
        self._world_size = world_size
        self._description = json.loads(json.dumps(description))
        self._card = None if card is None else json.loads(json.dumps(to_plain(card)))
        self._saving: futures.Future[None] | None = None
        self._keeping = Keeping(folder, config.keep_last, config.keep_every_steps, wanted)
        self._has_read_back = False
        self._group = dist.new_group(backend="gloo", group_desc=IN_BACKGROUND) if world_size > 1 else None
        if self._group is None:  # torch says so at every save; one rank is no mistake
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            self._on_rank_0(self._prepare_folder)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint folder {folder} cannot be written: {error.strerror}; {remedy(error)}"
            ) from error

    def save(self, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Saves the values of this moment; returns once they are copied. An earlier save is waited for first.

        Args:
            tensors: plain tensors, equal on all ranks, or DTensors; the same names on all ranks.
            scalars: plain JSON values; rank 0's are kept.

        Raises CheckpointError if the earlier save failed.
        """
        self.wait()
        staged = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        scalars = json.loads(json.dumps(scalars))  # a copy as well, and an error now rather than in the background
        self._saving = futures.Future()
        arguments = (self._saving, step, staged, scalars, OneThread(f"sums of step {step}"))
        # No daemon: the interpreter lets it finish, and would abort if it ended under a thread that is inside torch.
        threading.Thread(target=self._save, args=arguments, name=f"save of step {step}").start()
        if not self._config.asynchronous:
            self.wait()

    def poll(self) -> None:
        """Raises what a finished background save failed with, once. Ranks may learn of it at different steps."""
        if self._saving is not None and self._saving.done():
            finished, self._saving = self._saving, None
            finished.result()

    def wait(self) -> None:
        """Until the last save is complete under its final name, as seen by every rank. Raises like `poll`, on all."""
        if self._saving is not None:
            futures.wait([self._saving])
            self.poll()

    def latest(self, on_torn: OnTorn = ignore_torn) -> Path | None:
        """The newest complete checkpoint; torn ones are reported to `on_torn` and passed over.

        By names, sizes and what `note` was told: no sum is compared.
        """
        return self._keeping.newest(on_torn)

    @property
    def folder(self) -> Path:
        return self._folder

    def note(self, path: Path, *, whole: bool) -> None:
        """What loading a checkpoint of this run has shown: a torn one does not count among those that are kept."""
        self._keeping.note(path, whole=whole)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: the run went back. Raises CheckpointError if it cannot."""
        self._on_rank_0(lambda: self._keeping.forget_after(step))

    def clear_leftovers(self) -> None:
        """Removes what a killed run left unfinished; to be called when it is known where this one starts."""
        self._on_rank_0(self._clear_leftovers)

    def settle(self) -> None:
        """Until this rank's thread no longer writes, whatever came of it. Not collective."""
        if self._saving is not None:
            futures.wait([self._saving])

    def close(self) -> None:
        """Finishes the last save. Raises like `wait`."""
        self.wait()

    def _on_rank_0(self, action: Callable[[], T]) -> T:
        """The result of `action` on rank 0, or its error, for every rank; nobody returns before rank 0 is done."""
        outcome: list[Any] = [None, None]
        if self._rank == 0:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        if self._group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _of_all(self, value: T) -> list[T]:
        """The values of all ranks, on every rank."""
        values = [value] * self._world_size
        if self._group is not None:
            dist.all_gather_object(values, value, group=self._group)
        return values

    def _prepare_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        probe = hidden_folder(self._folder, 0, "probe")
        probe.mkdir()
        probe.rmdir()
        for path in sorted(self._folder.glob(".step_*")):
            replaced = re.fullmatch(r"\.(step_\d+)\.replaced-.*", path.name)
            if replaced and not (self._folder / replaced[1]).exists():
                os.rename(path, self._folder / replaced[1])  # killed between the two renames of _publish

    def _clear_leftovers(self) -> None:
        for path in sorted(self._folder.glob(".step_*")):
            shutil.rmtree(path, ignore_errors=True)

    def _save(
        self, saving: futures.Future[None], step: int, tensors: dict[str, Tensor], scalars: dict[str, Any],
        beside: OneThread,
    ) -> None:
        """The thread's whole work: the future always gets an answer."""
        try:
            with beside:
                self._write(step, tensors, scalars, beside)
                self._on_rank_0(lambda: self._keeping.prune(beside))
        except BaseException as error:  # torch's CheckpointException is no Exception
            saving.set_exception(error)
        else:
            saving.set_result(None)

    def _write(self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any], beside: OneThread) -> None:
        partial: Path | None = None
        try:
            partial = self._on_rank_0(lambda: self._create_partial(step))
            writer = Writer(partial, beside)
            dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            sums = {name: value for of_one in self._of_all(writer.sums) for name, value in of_one.items()}
            self._on_rank_0(lambda: write_manifest(
                partial, self._manifest(step, tensors, scalars, partial, sums)
            ))
            if self._config.verify == "every" or self._config.verify == "first" and not self._has_read_back:
                self._read_back(step, partial, tensors, writer, beside)
            self._on_rank_0(lambda: self._publish(partial, step))
            self._keeping.note(self._folder / folder_name(step), whole=True)
        except BaseException as error:
            if partial is not None and self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            cause = system_error(error)
            if cause is None:
                raise
            newest = self.latest()
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self._folder}: {cause}. "
                + (f"The newest complete checkpoint is {newest}. " if newest else "There is no complete one yet. ")
                + f"What to do: {remedy(cause)}. Afterwards the same command goes on."
            ) from error

    def _read_back(
        self, step: int, partial: Path, tensors: dict[str, Tensor], writer: Writer, beside: OneThread
    ) -> None:
        """Each rank reads what it wrote from the disk, and compares it with its memory.

        Raises CheckpointError, on all ranks alike, if one of them finds something else.
        """
        try:
            writer.forget_cached()
            with comparing(partial, writer.sums, beside):
                problem = first_difference(partial, {name: tensors[name] for name in sorted(writer.tensors)})
        except Exception as error:  # whatever it is: the other ranks wait
            problem = str(error) or repr(error)
        for rank, found in enumerate(self._of_all(problem)):
            if found is not None:
                raise CheckpointError(
                    f"the checkpoint of step {step} was read back and is not what rank {rank} has in memory: {found}. "
                    "It is not kept, and older ones are. Look for a faulty disk or memory there, or choose another "
                    "run.folder; then run the same command again"
                )
        self._has_read_back = True

    def _create_partial(self, step: int) -> Path:
        partial = hidden_folder(self._folder, step, "partial")
        partial.mkdir()
        return partial

    def _manifest(
        self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any], partial: Path, sums: dict[str, str]
    ) -> Manifest:
        found = {path.name: path.stat().st_size for path in partial.iterdir()}
        if not sums.keys() <= found.keys():
            unseen = sorted(sums.keys() - found.keys())[0]
            raise OSError(f"rank 0 does not see {unseen}: all nodes must share the folder")
        return Manifest(
            step=step, created=datetime.now(timezone.utc).isoformat(), world_size=self._world_size, scalars=scalars,
            tensors={name: TensorEntry.of(tensor) for name, tensor in tensors.items()},
            files={name: found[name] for name in sorted(sums)}, description=self._description, card=self._card,
            sha256=dict(sorted(sums.items())),
        )

    def _publish(self, partial: Path, step: int) -> None:
        final = self._folder / folder_name(step)
        replaced = hidden_folder(self._folder, step, "replaced")
        if final.exists():
            os.rename(final, replaced)
        os.rename(partial, final)
        sync_folder(self._folder)
        shutil.rmtree(replaced, ignore_errors=True)
