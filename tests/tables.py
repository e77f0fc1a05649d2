"""Pages of docs/ that tests write: rows of a table, and where it was made: `from tests.tables import row`."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone

from .program import ROOT


def row(*cells: object) -> str:
    """A row in Markdown; what cannot be written is shown by its number."""
    texts = (str(cell).encode(errors="backslashreplace").decode() for cell in cells)
    return f"| {' | '.join(text.replace('|', chr(92) + '|').replace(chr(10), ' ') for text in texts)} |"


def where(*packages: str) -> str:
    """The commit, the day and the machine, and `packages` such as "torch 2.13.0"."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    made = (f"Python {platform.python_version()}", *packages)
    return (
        f"Commit {commit}, {datetime.now(timezone.utc).date()}, {cores} cores of a {platform.machine()} CPU, "
        f"{', '.join(made)}."
    )


def shortened(words: str, limit: int) -> str:
    """A message without its first word, and cut."""
    words = words.removeprefix("error: ")
    return words if len(words) <= limit else f"{words[:limit - 3]}..."
