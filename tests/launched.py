"""Runs a plain function on ranks that find each other by themselves: `from tests.launched import Launched`."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from afm_scale.commands.ending import leave, tell
from afm_scale.core.errors import RunError
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.launch import Ranks, launch

from .ranks import PRELOADED, start_afresh

PATIENCE = 2.0  # of a rank whose error rank 0 is to tell; a command has more, for ranks that import torch first

LAUNCHERS_WORDS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
                   "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "AFM_SCALE_LAUNCHER_PID",
                   "AFM_SCALE_MEETING", "AFM_SCALE_STARTS")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def words_of(rank: int, world_size: int, port: int, address: str = "localhost") -> dict[str, str]:
    """What a launcher would say to a rank."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": address,
            "MASTER_PORT": str(port)}


class Launched:
    """One rank: `function(ranks)` inside of `launch`, in a forked process that ends as a command does."""

    def __init__(self, words: Mapping[str, str], function: Callable[[Ranks], Any], limit: int = 4) -> None:
        file = tempfile.NamedTemporaryFile(prefix="rank_", delete=False)
        self._stderr = Path(file.name)
        file.close()
        weakref.finalize(self, self._stderr.unlink, missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_WORDS}
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOADED)  # of no effect where the server runs already
        self.process = server.Process(
            target=_run, args=({**environment, **words}, str(self._stderr), function, limit)
        )
        self.process.start()

    @property
    def log(self) -> Path:
        return self._stderr.with_suffix(".log")

    def end(self, timeout: float = 60) -> tuple[int | None, str]:
        """(exit code, what it said); None if it is still there, and it is killed then."""
        self.process.join(timeout)
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        return code, self._stderr.read_text()


def _run(environment: dict[str, str], stderr: str, function: Callable[[Ranks], Any], limit: int) -> None:
    start_afresh(environment)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    warnings.simplefilter("error")
    config = ParallelConfig(plan="ddp", device="cpu", timeout_seconds=limit)
    try:
        with launch(config, log_of=lambda rank: Path(stderr).with_suffix(".log")) as ranks:
            function(ranks)
    except RunError as error:
        leave(tell(error, patience=PATIENCE))
    leave(0)
