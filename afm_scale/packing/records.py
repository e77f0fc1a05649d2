"""The record of a shard in a packing that is not finished: its part of the index, and what is said beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..core.errors import DataError
from ..core.files import require_regular
from ..core.strict_json import parse_json
from ..core.typed import Mistake, build
from ..data.description import Change, Refused, Shard


@dataclass(frozen=True, kw_only=True)
class About:
    """What the record of a shard says beside its part of the index."""

    shard: Shard
    refused: tuple[Refused, ...]
    changes: tuple[Change, ...] = ()
    num_changed: int = 0


def about_in(record: Path) -> About:
    """Raises DataError if the record of a shard is damaged."""
    try:
        require_regular(record)
        with safe_open(record, framework="pt") as file:
            text = (file.metadata() or {}).get("about", "")
        return build(About, parse_json(text, file_names=True))
    except (OSError, SafetensorError, ValueError, Mistake) as error:
        raise damaged(record, getattr(error, "strerror", None) or str(error)) from None


def damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged: {reason}; remove the folder {path.parent}, and pack again from the beginning")
