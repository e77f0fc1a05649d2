"""One command under launchers/torchrun.py, one launcher for each node, all of them on this machine."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.launched import LAUNCHERS_WORDS, free_port
from tests.program import ROOT

LAUNCHER = -1  # that of the first node, among the ranks that are sent a signal; -2 is that of the second
LIMIT_SECONDS = 240.0  # of a busy machine
ORPHANS_SECONDS = 20.0  # for workers whose launcher was killed


class Launchers:
    """`python -m afm_scale WORDS` in the folder `root` on so many ranks, as many on each node: a `ranks.Job`."""

    def __init__(
        self, words: Sequence[str], root: Path, *, ranks: int, nodes: int = 1, restarts: int = 0
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_WORDS}
        port, script = free_port(), str(ROOT / "launchers" / "torchrun.py")
        self._output = root / f".launchers.{time.monotonic_ns()}"
        self._ranks: dict[int, int] = {}  # the processes that were seen
        self.processes = []
        for node in range(nodes):
            meeting = [f"--nnodes={nodes}", f"--node-rank={node}", "--master-addr=localhost", f"--master-port={port}"]
            options = [*(meeting if nodes > 1 else ["--standalone"]), f"--nproc-per-node={ranks // nodes}",
                       f"--max-restarts={restarts}"]
            with self._output.open("ab") as stderr:
                self.processes.append(subprocess.Popen(
                    [sys.executable, script, *options, "-m", "afm_scale", *words], cwd=root, stderr=stderr,
                    env={**environment, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    start_new_session=True,
                ))
        self.began = time.monotonic()

    def running(self) -> set[int]:
        self._look()
        return {pid for pid in self._ranks.values() if self._is_ours(pid)}

    def send(self, number: int, to: Sequence[int]) -> None:
        """To launchers and ranks that are there; before there are ranks, to the first launcher."""
        self._look()
        pids = {one: self.processes[-1 - one].pid for one in to if one < 0 and self.processes[-1 - one].poll() is None}
        pids |= {one: self._ranks[one] for one in to if one in self._ranks}
        for pid in list(pids.values()) or [one.pid for one in self.processes[:1] if one.poll() is None]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, until: float = math.inf) -> int | None:
        """The code of the launcher that failed first; None as of any `Job`."""
        first: int | None = None
        while first is None or any(process.poll() is None for process in self.processes):
            if time.monotonic() >= until:
                return None
            self._look()
            codes = [process.poll() for process in self.processes]
            failed = [code for code in codes if code]
            first = first if first is not None else failed[0] if failed else 0 if None not in codes else None
            if time.monotonic() - self.began > LIMIT_SECONDS:
                self.kill()
                return None
            time.sleep(0.02)
        gone_by = time.monotonic() + ORPHANS_SECONDS
        while any(self._is_ours(pid) for pid in self._ranks.values()):
            if time.monotonic() > gone_by:
                self.kill()
                return None
            time.sleep(0.02)
        return first

    def kill(self) -> None:
        for pid in (*self._ranks.values(), *(process.pid for process in self.processes if process.poll() is None)):
            if pid not in self._ranks.values() or self._is_ours(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def told(self) -> str:
        return self._output.read_bytes().decode(errors="replace")

    def _look(self) -> None:
        for process in self.processes:
            with suppress(OSError, ValueError):  # they come and go meanwhile
                for pid in map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
                    self._note(pid)
                for task in Path(f"/proc/{process.pid}/task").iterdir():
                    for pid in map(int, (task / "children").read_text().split()):
                        self._note(pid)

    def _note(self, pid: int) -> None:
        rank = self._rank_of(pid)
        if rank is not None:
            self._ranks[rank] = pid

    def _is_ours(self, pid: int) -> bool:
        rank = self._rank_of(pid)
        return rank is not None and self._ranks.get(rank) == pid

    def _rank_of(self, pid: int) -> int | None:
        """None for a process that is gone, a zombie, or no worker."""
        with suppress(OSError, ValueError):
            words = dict(
                word.split(b"=", 1) for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in word
            )
            return int(words[b"RANK"]) if b"AFM_SCALE_LAUNCHER_PID" in words and b"RANK" in words else None
        return None
