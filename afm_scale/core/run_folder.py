"""The files of a run: one folder, whose names stand here and nowhere else, and readers of its two logs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError
from .files import LOG_LIMIT, open_regular, read_regular
from .ranges import LARGEST_WHOLE

_AT_ONCE = 2**26  # bytes of a log that are read in one go


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run lie; nothing is made by asking.

    RUN/config.yaml           the resolved recipe
        config.step_00001234.yaml   that of a time before, until this step
        id                    of this run and no other, wherever it lies
        events.jsonl          what happened: starts, saves, evaluations, signals
        metrics.jsonl         a row of numbers every few steps
        ranks.jsonl           each rank's own time in a step, every few steps, and which are slow
        summary.json          the last word, of a finished run
        report.png            its course, of whoever asked for it
        tensorboard/  samples/  skipped/
        checkpoints/          step_00001234/ ...
        discriminators/       step_00001234/ ..., earlier discriminators that may come back
        rank_00001.log        where a rank was when it lost the others, and the last of the one that was lost
        rank_00001.collectives.json   what it had begun by then, of torch's flight recorder
        profiles/             traces and tables of some steps (hooks.profile)
        profile               put there by a person who wants a profile of the next steps; goes when it is written
        memory_snapshot       likewise, of a GPU's memory (hooks.memory_snapshot)
        .lock  .held          who is writing here now (`core.holding`)
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    def earlier_config(self, step: int, number: int) -> Path:
        """What `config` was until a step; numbers from 1 tell those apart that were until the same one."""
        return self.path / f"config.step_{step:08d}{f'.{number}' if number > 1 else ''}.yaml"

    @property
    def id(self) -> Path:
        return self.path / "id"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ranks(self) -> Path:
        return self.path / "ranks.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.png"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def final_picture(self) -> Path:
        return self.samples / "final.png"

    def final_picture_in(self, num_steps: int) -> Path:
        """Of samples in another number of network evaluations than the recipe's (`sampling.also_reported`)."""
        return self.samples / f"final_{num_steps}_steps.png"

    @property
    def skipped(self) -> Path:
        return self.path / "skipped"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def discriminators(self) -> Path:
        return self.path / "discriminators"

    @property
    def profiles(self) -> Path:
        return self.path / "profiles"

    @property
    def profile_request(self) -> Path:
        return self.path / "profile"

    @property
    def memory_request(self) -> Path:
        return self.path / "memory_snapshot"

    def rank_log(self, rank: int) -> Path:
        return self.path / f"rank_{rank:05d}.log"

    def read_events(self) -> Iterator[Mapping[str, Any]]:
        """Yields {"time", "kind", ...} in the order of writing; a last line that a kill tore is left out.

        As it was written: `core.history` says which of them are of steps that were taken again.

        Raises DataError if the file is not there, or is not a log of events.
        """
        return _lines(self.events, "kind")

    def read_metrics(self) -> Iterator[Mapping[str, Any]]:
        """Yields rows {"step": int, ...}, numbers by name and None for what was not finite; else as `read_events`."""
        return _lines(self.metrics, "step")


class GrowingLog:
    """A log that a run goes on writing to: each of its lines once, and all anew when it is another file."""

    def __init__(self, path: Path, key: str) -> None:
        """`key` is what every line has: "kind" of events, "step" of metrics."""
        self._path, self._key = path, key
        self._file: tuple[int, int] | None = None
        self._read = self._number = 0  # bytes and lines that were read

    def new_rows(self) -> tuple[bool, list[Mapping[str, Any]]]:
        """(whether it was begun anew, what was added); a line that is still being written comes with a later call.

        None at all while there is no such file. Raises DataError as `RunFolder.read_metrics`, and again at the next
        call if it is not mended.
        """
        try:
            with open_regular(self._path) as file:
                found = os.fstat(file.fileno())
                begins = (found.st_dev, found.st_ino) != self._file or found.st_size < self._read
                read, number = (0, 0) if begins else (self._read, self._number)
                file.seek(read)
                content = file.read(_AT_ONCE)
        except FileNotFoundError:
            return False, []
        except OSError as error:
            raise _unreadable(self._path, error) from error
        whole = content[:content.rfind(b"\n") + 1]
        rows = [_row(self._path, at, line, self._key) for at, line in enumerate(whole.splitlines(), start=number + 1)]
        self._file = (found.st_dev, found.st_ino)
        self._read, self._number = read + len(whole), number + len(rows)
        return begins, rows


def _lines(path: Path, key: str) -> Iterator[Mapping[str, Any]]:
    try:
        lines = read_regular(path, LOG_LIMIT).splitlines(keepends=True)
    except OSError as error:
        raise _unreadable(path, error) from error
    for number, line in enumerate(lines, start=1):
        try:
            row = _row(path, number, line, key)
        except _NotJsonError:
            if number == len(lines):  # torn
                return
            raise
        yield row


class _NotJsonError(DataError):
    pass


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}; name the folder of a run")


def _row(path: Path, number: int, line: bytes, key: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _NotJsonError(f"{path}, line {number} is not JSON ({error}); restore the file") from error
    if not isinstance(row, dict) or key not in row:
        raise DataError(f"{path}, line {number} has no {key!r}: it is not of a run's log; restore the file")
    if type(row.get("step", 0)) is not int or not 0 <= row.get("step", 0) <= LARGEST_WHOLE:
        raise DataError(f"{path}, line {number}: its 'step' is no whole number from 0 on; restore the file")
    return row
