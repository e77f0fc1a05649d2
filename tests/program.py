"""Starts the program as a person would: `from tests.program import train`."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from .launched import LAUNCHERS_WORDS, free_port, words_of
from .ranks import PRELOADED, start_afresh

ROOT = Path(__file__).resolve().parents[1]

# Small enough that starting the process takes longer than training it.
SMALL_GENERATOR = ("model.generator.hidden_size=16", "model.generator.depth=2", "model.generator.num_heads=2")
SMALL_DISCRIMINATOR = tuple(text.replace("generator", "discriminator") for text in SMALL_GENERATOR)
QUIET = ("data.global_batch=8", "hooks.samples=null", "hooks.metrics.tensorboard=false", "report=null")
SMALL_AFM = ("digits_afm", *SMALL_GENERATOR, *SMALL_DISCRIMINATOR, *QUIET)
SMALL_CLASSIFIER = ("model.classifier.hidden_size=16", "model.classifier.num_heads=2")
SMALL_CLASSIFICATION = ("classifier_digits", *SMALL_CLASSIFIER, *QUIET)
SMALL_FLOW_MATCHING = ("digits_flow_matching", *SMALL_GENERATOR, *QUIET)


class ForkedProgram:
    """`python -m afm_scale ARGUMENTS`, forked from a server that has imported torch; the face of subprocess.Popen.

    `first`, of the top level of a module, is called in the process before the program begins.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="program_"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._outputs = [folder / name for name in ("stdout", "stderr")]
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOADED)  # of no effect where the server runs already
        outputs = [str(path) for path in self._outputs]
        around = dict(os.environ if environment is None else environment)
        self._process = server.Process(target=_run_forked, args=(list(arguments), around, *outputs, first))
        self._process.start()
        self.pid, self.sentinel = self._process.pid, self._process.sentinel

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), after the end. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("afm_scale", timeout or 0)
        return tuple(path.read_text(encoding="utf-8") if path.exists() else "" for path in self._outputs)


class ForkedRanks:
    """The ranks of one command, forked and without a launcher, of which each would import torch anew: as one Popen."""

    def __init__(
        self, arguments: Sequence[str], ranks: int, first: Mapping[int, Callable[[], None]] | None = None
    ) -> None:
        """`first`: of which ranks, see `ForkedProgram`."""
        port = free_port()
        around = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_WORDS}
        self._failed = 0
        self._ranks = [
            ForkedProgram(arguments, around | words_of(rank, ranks, port), (first or {}).get(rank))
            for rank in range(ranks)
        ]

    @property
    def returncode(self) -> int | None:
        """None while one is there; of the rank that failed first, if one did."""
        codes = [rank.poll() for rank in self._ranks]
        return None if None in codes else self._failed or next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What all ranks said, one after the other. As a launcher does, it ends the others as soon as one has failed.

        Raises subprocess.TimeoutExpired.
        """
        running = list(self._ranks)
        while running and wait([rank.sentinel for rank in running], timeout):
            for rank in [rank for rank in running if rank.poll() is not None]:
                running.remove(rank)
                if rank.returncode != 0 and self._failed == 0:
                    self._failed = rank.returncode
                    self.kill()
        stdout, stderr = zip(*(rank.communicate(0 if running else None) for rank in self._ranks), strict=True)
        return "".join(stdout), "".join(stderr)


def _run_forked(
    arguments: list[str], environment: dict[str, str], stdout: str, stderr: str, first: Callable[[], None] | None
) -> None:
    start_afresh(environment)
    os.chdir(ROOT)
    for number, (path, name) in enumerate(((stdout, "stdout"), (stderr, "stderr")), start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
    sys.argv = ["afm_scale", *arguments]
    if first is not None:
        first()
    runpy.run_module("afm_scale", run_name="__main__", alter_sys=True)


def start(*arguments: str | Path, ranks: int = 1) -> subprocess.Popen[str] | ForkedProgram:
    """`python -m afm_scale ARGUMENTS`, under our launcher if there are several ranks; output is read by `end`."""
    words = [str(word) for word in arguments]
    if ranks == 1:
        return ForkedProgram(words)
    launcher = [str(ROOT / "launchers" / "torchrun.py"), "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "afm_scale", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def end(process: subprocess.Popen[str] | ForkedProgram | ForkedRanks, timeout: float = 120) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); the process is killed if it takes longer."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def run(*arguments: str | Path, ranks: int = 1) -> tuple[int, str, str]:
    return end(start(*arguments, ranks=ranks))


def train(
    recipe: Sequence[str], folder: Path, *overrides: str, ranks: int = 1
) -> subprocess.Popen[str] | ForkedProgram:
    return start("train", *recipe, f"run.folder={folder}", "parallel.device=cpu", *overrides, ranks=ranks)


def train_forked(
    recipe: Sequence[str], folder: Path, *overrides: str, ranks: int,
    first: Mapping[int, Callable[[], None]] | None = None,
) -> ForkedRanks:
    """`train` where the launcher is not what it is about."""
    return ForkedRanks(["train", *recipe, f"run.folder={folder}", "parallel.device=cpu", *overrides], ranks, first)
