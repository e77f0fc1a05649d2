"""From a path to the newest checkpoint that is whole, whatever it is wanted for; torn ones are said and passed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..core.errors import CheckpointError, TornError
from ..core.run_folder import RunFolder
from .manifest import OnTorn, visible_checkpoints

T = TypeVar("T")

_REASONS_SHOWN = 3


def candidates(path: Path) -> tuple[Path, ...]:
    """The checkpoints a user may mean by `path`, best first: itself, or all of a run's folder, newest first."""
    of_run = RunFolder(path).checkpoints
    folder = of_run if of_run.is_dir() else path
    found = tuple(checkpoint for _, checkpoint in visible_checkpoints(folder))
    return found if found or folder != path else (path,)


def of_newest_whole(path: Path, found: Sequence[Path], use: Callable[[Path], T], on_torn: OnTorn, *, do: str) -> T:
    """What `use` makes of the first checkpoint that is whole.

    Args:
        path: what was asked for, if it is one checkpoint the only one of `found`.
        use: raises TornError for one that is not whole; if it is collective, on all ranks alike.
        on_torn: is told of each that was passed over.
        do: what the user may do if none is whole, as the end of a sentence.

    Raises TornError of the one checkpoint that was asked for, or CheckpointError if none of several is whole.
    """
    reasons = []
    for checkpoint in found:
        try:
            return use(checkpoint)
        except TornError as error:
            if checkpoint == path:
                raise
            on_torn(checkpoint, str(error))
            reasons.append(str(error))
    if not reasons:
        raise CheckpointError(f"{path} holds no complete checkpoint; {do}")
    shown = "; ".join(reasons[:_REASONS_SHOWN]) + ("; ..." if len(reasons) > _REASONS_SHOWN else "")
    raise CheckpointError(f"{path} holds no complete checkpoint, none of its {len(reasons)} is whole: {shown}. {do}")
