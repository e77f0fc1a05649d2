"""Edits of checkpoints that are meant: `from tests.checkpoints import write_manifest_text`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from afm_scale.checkpoint.manifest import MANIFEST_NAME, SUMS_NAME


def write_manifest_text(path: Path, text: str | bytes) -> None:
    """Into a checkpoint, with its sum put right if it has one: what is wrong then is what the text says."""
    content = text.encode() if isinstance(text, str) else text
    (path / MANIFEST_NAME).write_bytes(content)
    sums = path / SUMS_NAME
    if sums.exists():
        _, rest = sums.read_text().split("\n", maxsplit=1)
        sums.write_text(f"{hashlib.sha256(content).hexdigest()}  {MANIFEST_NAME}\n{rest}")


def flip(file: Path, place: int) -> None:
    """The bits of one byte, or of the last one of a shorter file; doing so again undoes it.

    In place: another rank that looks at the file meanwhile finds it as long as ever.
    """
    with file.open("r+b") as opened:
        content = opened.read()
        place = range(len(content))[min(place, len(content) - 1)]
        opened.seek(place)
        opened.write(bytes([content[place] ^ 0xFF]))
