"""Every run of a comparison by the train command, then a table and a picture of what there is."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core import stopping
from ..core.errors import EXIT_DONE, EXIT_FAILURE, ConfigError
from ..core.files import append_regular, make_folder, read_regular, write_atomically
from ..core.ranges import Range
from ..core.screen import note, say
from ..run.arguments import add_number
from ..run.load import load
from .compared import Outcome, draw, draw_samples, table, unequal
from .comparison import ComparisonConfig, Job, jobs_of, operations

_LOOK_SECONDS = 0.2
_LONGEST_LOG = 2**26


@dataclass(frozen=True, kw_only=True)
class Compare:
    """What a command that compares is asked for."""

    comparison: str
    overrides: Sequence[str] = ()
    processes: int = 2  # runs at a time, each with one thread
    only: bool = False  # draw what there is, run nothing
    markdown: Path | None = None  # None: FOLDER/table.md
    picture: Path | None = None  # None: FOLDER/figures.png


def add_how(parser: argparse.ArgumentParser) -> None:
    """Gives a command that compares what they all take: `processes` and `only`."""
    add_number(parser, "--processes", int, Range(1, 1000), default=2, metavar="N", help="runs at a time (default 2)")
    parser.add_argument("--only", action="store_true", help="run nothing: the table and the picture of what there is")


def kept(name: str) -> str:
    """The file of a comparison that the program's sources keep. Raises ConfigError where they do not lie."""
    comparison = Path("docs", "evidence", f"{name}.yaml")
    if not comparison.exists():
        raise ConfigError(f"{comparison} is not there; call this where the program's sources lie")
    return str(comparison)


def compare_command(request: Compare) -> int:
    """Returns EXIT_FAILURE if a run did not end well; the others are run, and shown, all the same.

    Raises ConfigError for a comparison or a run of it that cannot be.
    """
    config = load(ComparisonConfig, request.comparison, request.overrides)
    jobs = jobs_of(config)
    if len({job.folder for job in jobs}) < len(jobs):
        raise ConfigError("two ways, or two of the data, have names that give one folder; rename one")
    counted: dict[tuple[str, str], float] = {}
    for job in jobs:  # all are looked at before the first is run
        if (job.way, job.data) not in counted:
            counted[job.way, job.data] = operations(job.config)
    outcome = Outcome(config, jobs, {}, {}, counted)
    for warning in unequal(outcome):
        note(f"warning: {warning}")
    summaries = {job: summary for job in jobs if (summary := job.summary()) is not None}
    outcome = replace(outcome, summaries=summaries)
    todo = [] if request.only else [job for job in jobs if job not in summaries]
    failures: dict[Job, str] = {}
    asked: list[int] = []
    with stopping.taken_over(asked.append):
        for job, code in _run_all(todo, request.processes, asked):
            summary = job.summary() if code == EXIT_DONE else None
            if summary is None:
                failures[job] = f"exit code {code}: {_last_words(job)}"
            else:
                summaries[job] = summary
            note(f"{len(summaries)} of {len(jobs)}: {job.name} {'ended' if summary else failures[job]}")
            outcome = replace(outcome, summaries=summaries, failures=failures)
            _write(request, outcome)
    _write(request, outcome)
    say(table(outcome))
    if asked:
        note("stopped; run the same command again to go on")
        return 128 + asked[0]
    return EXIT_FAILURE if failures else EXIT_DONE


def _write(request: Compare, outcome: Outcome) -> None:
    folder = outcome.config.folder
    make_folder(folder)
    content = table(outcome).encode()
    write_atomically(request.markdown or folder / "table.md", lambda file: file.write(content))
    draw(request.picture or folder / "figures.png", outcome)
    if outcome.config.pictures:
        draw_samples(folder / "samples.png", outcome)


def _run_all(jobs: Sequence[Job], processes: int, asked: Sequence[int]) -> Iterator[tuple[Job, int]]:
    """Runs them, so many at a time, and yields each with its exit code as it ends; until a signal has been `asked`.

    Whatever ends this, the runs that are under way are asked to stop: they save, and go on another time.
    """
    waiting = list(jobs)
    running: dict[Job, subprocess.Popen[bytes]] = {}
    try:
        while (waiting or running) and not asked:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                running[job] = _start(job)
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    yield job, process.returncode
            time.sleep(_LOOK_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _start(job: Job) -> subprocess.Popen[bytes]:
    make_folder(job.folder)
    words = [sys.executable, "-m", "afm_scale", "train", job.recipe, *job.overrides]
    with append_regular(_log(job)) as log:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )


def _log(job: Job) -> Path:
    return job.folder / "train.log"


def _last_words(job: Job) -> str:
    try:
        lines = read_regular(_log(job), _LONGEST_LOG).decode(errors="replace").strip().splitlines()
    except OSError as error:  # its folder was moved away while it ran, say
        return f"and {_log(job)} cannot be read: {error.strerror}"
    return lines[-1].strip()[-300:] if lines else "it said nothing"
