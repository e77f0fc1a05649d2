"""What is known of a checkpoint beside its tensors, as a JSON text with a version: in a file's head, or in config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ...core.errors import CheckpointError, ConfigError
from ...core.ranges import MANY, Range
from ...core.strict_json import parse_json
from ...core.typed import build, found
from ..card import VERSION as CARD_VERSION
from ..card import from_plain, to_plain
from .format import About

FORMAT = "afm_scale weights"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class _Said:
    step: Annotated[int, Range(0, MANY)]
    world_size: Annotated[int, Range(1, MANY)]
    card: Mapping[str, Any] | None
    scalars: Mapping[str, Any] | None
    description: Mapping[str, Any] = field(default_factory=dict)


def plain_of(about: About) -> dict[str, Any]:
    """JSON values; `from_plain_about` reads them."""
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "step": about.step, "world_size": about.world_size,
        "card": None if about.card is None else to_plain(about.card),
        "scalars": about.scalars if about.scalars is None else dict(about.scalars),
        "description": dict(about.description),
    }


def about_to(about: About) -> str:
    return json.dumps(plain_of(about))


def about_from(path: Path, text: str | bytes) -> About:
    """The inverse of `about_to`. Raises CheckpointError for what is none, or of a newer version."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _damaged(path, error) from error
    return from_plain_about(path, content)


def from_plain_about(path: Path, content: Any) -> About:
    """As `about_from`, of values that have been parsed."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not say that it was written by this program; say --from FORMAT")
    version, card = content.get("format_version"), content.get("card")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {found(version)}, this program reads version {FORMAT_VERSION}; use the version "
            "of the program that wrote it"
        )
    if isinstance(card, Mapping) and card.get("version") != CARD_VERSION:
        raise CheckpointError(
            f"{path} has a card of version {found(card.get('version'))}, this program reads version {CARD_VERSION}; "
            "use the version of the program that wrote it"
        )
    try:
        said = build(_Said, {key: content[key] for key in content.keys() - {"format", "format_version", "part"}})
        return About(
            card=None if said.card is None else from_plain(said.card), step=said.step, scalars=said.scalars,
            description=said.description, world_size=said.world_size,
        )
    except ConfigError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: what it says of itself cannot be read ({str(error):.300}); use another copy"
    )
