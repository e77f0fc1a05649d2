"""Which run this is, and of which data: what its folder and its configuration do not say by their names."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from ..checkpoint.manifest import newest_complete, read_manifest, visible_checkpoints
from ..core.errors import UserError
from ..core.files import explained_write, read_regular, write_atomically
from ..core.run_folder import RunFolder
from .config import RunConfig

_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Origin:
    """Goes into every manifest of the run."""

    run: str  # at random, born with the run: 16 hexadecimal digits
    data: Mapping[str, str]  # `SourceConfig.fingerprint`


def origin_of(config: RunConfig) -> Origin:
    """Of the run in this folder, for one rank to ask; writes nothing. Raises DataError or UserError for bad files."""
    return Origin(_run_in(RunFolder(config.run.folder)), dict(config.data.fingerprint()))


def write_records(folder: RunFolder, origin: Origin, config: str, step: int) -> None:
    """The run's id, and its configuration as YAML, of a run that starts at this step; another one is kept beside it.

    Raises UserError if the file system refuses.
    """
    write_atomically(folder.id, lambda file: file.write(f"{origin.run}\n".encode()))
    with explained_write(folder.config):
        before = read_regular(folder.config) if folder.config.exists() else None
    if before is not None and before != config.encode():
        free = (folder.earlier_config(step, number) for number in count(1))
        write_atomically(next(path for path in free if not path.exists()), lambda file: file.write(before))
    write_atomically(folder.config, lambda file: file.write(config.encode()))


def _run_in(folder: RunFolder) -> str:
    """The id of the run that goes on here, or another one if there is none: without a checkpoint a run begins anew."""
    if not visible_checkpoints(folder.checkpoints):
        return secrets.token_hex(8)
    try:
        found = read_regular(folder.id).decode().strip()
    except FileNotFoundError:
        newest = newest_complete(folder.checkpoints)
        found = None if newest is None else read_manifest(newest).description.get("run")
        return found if isinstance(found, str) and _ID.fullmatch(found) else secrets.token_hex(8)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.id} cannot be read: {error}; restore it, or remove it for another id") from None
    if not _ID.fullmatch(found):
        raise UserError(
            f"{folder.id} holds {found[:40]!r}, wanted 16 hexadecimal digits; restore it, or remove it for another id"
        )
    return found
