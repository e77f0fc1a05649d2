"""What the cases came to, kept in a file, so that many runs of the script make one table: the last word counts."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from tests.program import ROOT

from .outcome import GOOD, Outcome, Verdict


def commit() -> str:
    """Of the working tree, with a + for changes that are in no commit."""
    words = ["git", "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()


@dataclass(frozen=True, kw_only=True)
class Entry:
    verdict: Verdict
    commit: str

    @property
    def is_good(self) -> bool:
        return self.verdict.outcome in GOOD


@dataclass
class Record:
    """`path`: a file of JSON lines, or None for a record that is not kept."""

    path: Path | None = None
    commit: str = field(default_factory=commit)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                case, commit_of_row = row.pop("case"), row.pop("commit")
                verdict = Verdict(**{**row, "outcome": Outcome(row["outcome"])})
                self.entries[case] = Entry(verdict=verdict, commit=commit_of_row)

    def add(self, case: object, verdict: Verdict) -> None:
        with self._lock:
            self.entries[str(case)] = Entry(verdict=verdict, commit=self.commit)
            if self.path is not None:
                row = {"case": str(case), "outcome": verdict.outcome.value, "words": verdict.words,
                       "seconds": round(verdict.seconds, 1), "exit_seconds": verdict.exit_seconds,
                       "restart_seconds": verdict.restart_seconds, "commit": self.commit}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(row)}\n")
