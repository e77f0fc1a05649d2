"""Which checkpoints of a run are whole, as far as this process knows, and which of them stay."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.files import remedy
from .manifest import (
    OnTorn,
    folder_name,
    ignore_torn,
    newest_complete,
    problem_with,
    read_manifest,
    visible_checkpoints,
)
from .sums import compare


class Keeping:
    """The newest `keep_last` whole checkpoints of a folder stay, and every step that `keep_every_steps` divides.

    A damaged one may look complete, and must not stand in the place of one that is whole. So those count that this
    process has written or loaded; any other is compared with its sums when it comes to be counted, once.
    Where somebody says which steps are `wanted`, these stay and no others.
    """

    def __init__(
        self, folder: Path, keep_last: int, keep_every_steps: int | None,
        wanted: Callable[[], Collection[int]] | None = None,
    ) -> None:
        self._folder = folder
        self._wanted = wanted
        self._keep_last = keep_last
        self._keep_every_steps = keep_every_steps
        self._whole: set[Path] = set()
        self._torn: set[Path] = set()

    def note(self, path: Path, *, whole: bool) -> None:
        """What was found out about a checkpoint, whatever was known before."""
        for found, is_so in ((self._whole, whole), (self._torn, not whole)):
            (found.add if is_so else found.discard)(path)

    def newest(self, on_torn: OnTorn = ignore_torn) -> Path | None:
        """By names, sizes and what was noted: no sum is compared. Torn ones are reported to `on_torn`."""
        return newest_complete(self._folder, on_torn, known_torn=self._torn)

    def prune(self, beside: Executor) -> None:
        """Hides, then deletes, what need not stay; `beside` compares sums. Raises CheckpointError if it cannot."""
        self._remove(self._superfluous(beside))

    def forget_after(self, step: int) -> None:
        """Removes those of later steps. Raises CheckpointError if it cannot."""
        self._remove((at, path) for at, path in visible_checkpoints(self._folder) if at > step)

    def _remove(self, superfluous: Iterable[tuple[int, Path]]) -> None:
        for step, path in superfluous:
            hidden = hidden_folder(self._folder, step, "pruned")
            try:
                os.rename(path, hidden)
            except OSError as error:
                raise CheckpointError(
                    f"the old checkpoint {path} cannot be removed: {error.strerror}; {remedy(error)}. "
                    "Newer checkpoints are intact."
                ) from error
            shutil.rmtree(hidden, ignore_errors=True)

    def _superfluous(self, beside: Executor) -> Iterator[tuple[int, Path]]:
        if self._wanted is not None:
            wanted = self._wanted()
            yield from ((step, path) for step, path in visible_checkpoints(self._folder) if step not in wanted)
            return
        whole = 0
        for step, path in visible_checkpoints(self._folder):
            if whole < self._keep_last:
                whole += self._is_whole(path, beside)
            elif self._keep_every_steps is None or step % self._keep_every_steps:
                yield step, path

    def _is_whole(self, path: Path, beside: Executor) -> bool:
        if path in self._torn or problem_with(path) is not None:
            return False
        if path not in self._whole:
            try:
                compare(path, read_manifest(path).sha256 or {}, beside)
            except CheckpointError:
                self.note(path, whole=False)
                return False
            self.note(path, whole=True)
        return True


def hidden_folder(folder: Path, step: int, purpose: str) -> Path:
    """A free name beside the checkpoints, for what is none of them yet or no more."""
    return folder / f".{folder_name(step)}.{purpose}-{secrets.token_hex(4)}"
