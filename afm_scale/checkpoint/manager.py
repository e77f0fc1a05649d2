"""Saves a run's state in the background, so that a kill at any instant leaves complete checkpoints only.

save() copies the tensors and returns; a thread on every rank then writes its shards into a hidden folder
(torch.distributed.checkpoint), and rank 0 adds the manifest and renames the folder to its final name. The ranks
coordinate over a gloo group of their own, never over the group that training is using meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ..core.errors import CheckpointError, ConfigError
from .card import Card, to_plain
from .manifest import (
    Manifest,
    OnTorn,
    TensorEntry,
    folder_name,
    ignore_torn,
    newest_complete,
    problem_with,
    sync_folder,
    visible_checkpoints,
    write_manifest,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep: the newest `keep_last`, and every step that `keep_every_steps` divides."""

    every_steps: int
    keep_last: int = 3
    keep_every_steps: int | None = None
    asynchronous: bool = True  # False: save() returns when the checkpoint is on the disk

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep_last", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"checkpoint.{name} is {value}, it must be at least 1")


class CheckpointManager:
    """The checkpoints of one run, in RUN/checkpoints. Every method but `latest` and `poll` is called on all ranks."""

    def __init__(
        self, folder: Path, config: CheckpointConfig, *, rank: int, world_size: int, description: Mapping[str, Any],
        card: Card | None = None,
    ) -> None:
        """Creates the folder and clears what a killed run left in it; `description` and card go into every manifest.

        Raises CheckpointError if the folder cannot be written.
        """
        self._folder = folder
        self._config = config
        self._rank = rank
        self._world_size = world_size
        self._description = json.loads(json.dumps(description))
        self._card = None if card is None else json.loads(json.dumps(to_plain(card)))
        self._saving: futures.Future[None] | None = None
        self._group = dist.new_group(backend="gloo") if world_size > 1 else None
        if self._group is None:  # torch says so at every save; one rank is no mistake
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            self._on_rank_0(self._prepare_folder)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint folder {folder} cannot be written: {error.strerror}; "
                "give it write permission or choose another run.folder"
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
        arguments = (self._saving, step, staged, scalars)
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
        """The newest complete checkpoint; torn ones are reported to `on_torn` and passed over."""
        return newest_complete(self._folder, on_torn)

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

    def _prepare_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        probe = self._hidden(0, "probe")
        probe.mkdir()
        probe.rmdir()
        for path in sorted(self._folder.glob(".step_*")):
            replaced = re.fullmatch(r"\.(step_\d+)\.replaced-.*", path.name)
            if replaced and not (self._folder / replaced[1]).exists():
                os.rename(path, self._folder / replaced[1])  # killed between the two renames of _publish
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _hidden(self, step: int, purpose: str) -> Path:
        return self._folder / f".{folder_name(step)}.{purpose}-{secrets.token_hex(4)}"

    def _save(
        self, saving: futures.Future[None], step: int, tensors: dict[str, Tensor], scalars: dict[str, Any]
    ) -> None:
        """The thread's whole work: the future always gets an answer."""
        try:
            self._write(step, tensors, scalars)
            self._on_rank_0(self._prune)
        except BaseException as error:  # torch's CheckpointException is no Exception
            saving.set_exception(error)
        else:
            saving.set_result(None)

    def _write(self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        partial: Path | None = None
        try:
            partial = self._on_rank_0(lambda: self._create_partial(step))
            writer = _Writer(partial)
            dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            self._on_rank_0(
                lambda: self._publish(partial, self._manifest(step, tensors, scalars, partial, writer.written))
            )
        except BaseException as error:
            if partial is not None and self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            cause = _system_error(error)
            if cause is None:
                raise
            newest = self.latest()
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self._folder}: {cause}. "
                + (f"The newest complete checkpoint is {newest}. " if newest else "There is no complete one yet. ")
                + "Free space or give write permission, then run the same command again: it goes on from there."
            ) from error

    def _create_partial(self, step: int) -> Path:
        partial = self._hidden(step, "partial")
        partial.mkdir()
        return partial

    def _manifest(
        self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any], partial: Path, written: set[str]
    ) -> Manifest:
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        if not written <= files.keys():
            raise OSError(f"rank 0 does not see {sorted(written - files.keys())[0]}: all nodes must share the folder")
        return Manifest(
            step=step, created=datetime.now(timezone.utc).isoformat(), world_size=self._world_size, scalars=scalars,
            tensors={name: TensorEntry.of(tensor) for name, tensor in tensors.items()}, files=files,
            description=self._description, card=self._card,
        )

    def _publish(self, partial: Path, manifest: Manifest) -> None:
        write_manifest(partial, manifest)
        final = self._folder / folder_name(manifest.step)
        replaced = self._hidden(manifest.step, "replaced")
        if final.exists():
            os.rename(final, replaced)
        os.rename(partial, final)
        sync_folder(self._folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _prune(self) -> None:
        """Hides, then deletes, what is older than the `keep_last` newest complete checkpoints."""
        complete = 0
        for step, path in visible_checkpoints(self._folder):
            if complete < self._config.keep_last:
                complete += problem_with(path) is None
            elif self._config.keep_every_steps is None or step % self._config.keep_every_steps:
                hidden = self._hidden(step, "pruned")
                try:
                    os.rename(path, hidden)
                except OSError as error:
                    raise CheckpointError(
                        f"the old checkpoint {path} cannot be removed: {error.strerror}; "
                        f"give write permission for {self._folder}. Newer checkpoints are intact."
                    ) from error
                shutil.rmtree(hidden, ignore_errors=True)


class _Writer(dcp.FileSystemWriter):
    """Raises the operating system's error: torch wraps it in one of its own, and the wrapped one does not travel."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, per_thread_copy_ahead=0)  # tensors are on the CPU already: no device stream
        self.written: set[str] = set()  # on rank 0, after the save: the files of all ranks

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Any:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise _system_error(error) or error from None

    def finish(self, metadata: dcp.Metadata, results: list[list[Any]]) -> None:
        # Kept here because the metadata that dcp.save returns lists no files on torch 2.11.
        self.written = {item.storage_data.relative_path for of_one_rank in results for item in of_one_rank}
        super().finish(metadata, results)


def _system_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error, on whichever rank it arose."""
    while error is not None and not isinstance(error, OSError):
        if isinstance(error, CheckpointException):
            found = (_system_error(failure) for failure, _ in error.failures.values())
            return next((cause for cause in found if cause), None)
        error = error.__cause__ or error.__context__
    return error
