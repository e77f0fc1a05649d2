"""The ranks of one command, forked from a server that has imported everything, with limits of time and memory."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tests.damage.trial import COMMANDS, STARTING, kill
from tests.launched import LAUNCHERS_WORDS, free_port, words_of
from tests.ranks import PRELOADED, start_afresh

LIMIT_SECONDS = 20.0
"""Of a processor's time to each rank; and of time on the clock that passes while none gets on."""
LIMIT_MORE_BYTES = 3 << 30  # of addresses, beside those of a child that has done nothing
LINGERING_SECONDS = 2.0  # of ranks that are left when one has ended with an error; a launcher ends them sooner


class Job(Protocol):
    """The processes of one command, whoever starts them."""

    began: float

    def send(self, number: int, to: Sequence[int]) -> None:
        """A signal to some of the ranks, of those that are there."""

    def end(self, until: float = math.inf) -> int | None:
        """The exit code; None if it had to be killed, for time, or at the instant `until`: then all go on."""

    def kill(self) -> None: ...

    def running(self) -> set[int]:
        """The processes of ranks that are there."""

    def told(self) -> str:
        """The standard errors of all."""


class Ranks:
    """`python -m afm_scale WORDS` in the folder `root`, on this many ranks."""

    def __init__(self, words: Sequence[str], root: Path, ranks: int = 1, limit_seconds: float | None = None) -> None:
        self._limit = LIMIT_SECONDS if limit_seconds is None else limit_seconds
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_WORDS}
        server = multiprocessing.get_context("forkserver")
        port = free_port()
        self._outputs = [root / f".{rank}.{time.monotonic_ns()}" for rank in range(ranks)]
        self.processes = []
        with STARTING:  # starting one asks after all others, and two must not ask at once
            server.set_forkserver_preload([*PRELOADED, *COMMANDS])  # of no effect where the server runs already
            for rank, output in enumerate(self._outputs):
                of_rank = words_of(rank, ranks, port) if ranks > 1 else {}
                arguments = (list(words), {**environment, **of_rank}, str(root), str(output))
                self.processes.append(server.Process(target=_child, args=arguments))
                self.processes[-1].start()
        self.began = time.monotonic()

    def codes(self) -> list[int | None]:
        with STARTING:
            return [process.exitcode for process in self.processes]

    def running(self) -> set[int]:
        return {process.pid for process, code in zip(self.processes, self.codes(), strict=True) if code is None}

    def send(self, number: int, to: Sequence[int] = (0,)) -> None:
        for rank in to:
            if self.codes()[rank] is None:
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(self.processes[rank].pid, number)

    def end(self, until: float = math.inf) -> int | None:
        """The code of the one that ended first, or the worst one's; None if one had to be killed, for time.

        Returns too, with None, at the instant `until`: then all go on.
        """
        seen, got_on_at, failed_at = 0.0, time.monotonic(), 0.0
        first: int | None = None
        while any(code is None for code in self.codes()):
            if time.monotonic() >= until:
                return None
            now, used = time.monotonic(), [_seconds_of(process.pid) for process in self.processes]
            if sum(used) > seen + 0.05:
                seen, got_on_at = sum(used), now
            failures = [code for code in self.codes() if code]
            if failures and not failed_at:
                first, failed_at = failures[0], now
            if failed_at and now - failed_at > LINGERING_SECONDS + (0 if self.codes()[0] is not None else 10):
                self.kill()
                return first
            if now - got_on_at > self._limit or max(used) > self._limit:
                self.kill()
                return None
            time.sleep(0.02)
        return first if first is not None else max(self.codes(), key=abs)

    def kill(self) -> None:
        for process in self.processes:
            with STARTING:
                kill(process)

    def told(self) -> str:
        """The standard errors of all ranks."""
        return "".join(
            path.read_bytes().decode(errors="replace") for path in self._outputs if path.exists()
        )


def _seconds_of(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _child(words: list[str], environment: dict[str, str], root: str, output: str) -> None:
    start_afresh(environment)
    os.setpgid(0, 0)  # so that whatever it starts can be ended with it
    os.chdir(root)
    for number, (path, name) in enumerate(((os.devnull, "stdout"), (output, "stderr")), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + LIMIT_MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["afm_scale", *words]
    runpy.run_module("afm_scale", run_name="__main__", alter_sys=True)
