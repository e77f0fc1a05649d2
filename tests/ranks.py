"""Runs a plain function on several ranks: `from tests.ranks import run_ranks`."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = [
    "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo",
    "afm_scale.commands.train", "matplotlib.figure", "sklearn.svm",
]


class RankFailure(AssertionError):
    """A rank raised, died or was too slow; the message carries its traceback."""


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60, imported: bool = True,
) -> list[Any]:
    """Calls `function(*args)` in `world_size` fresh processes that share a gloo group; returns what each rank returned.

    The function must be at the top level of an importable module; arguments and results are pickled. Processes are
    forked from a server that has imported torch once (and with it Triton), or start with nothing `imported`. Each has
    one thread, the caller's environment with RANK, LOCAL_RANK and WORLD_SIZE set, and the caller's warning filters
    (under pytest: warnings are errors). Raises RankFailure, with every process killed, after `timeout` seconds or as
    soon as one rank fails.
    """
    server: Any = multiprocessing.get_context("forkserver" if imported else "spawn")
    if imported:
        server.set_forkserver_preload(PRELOADED)  # of no effect where the server runs already
    with tempfile.TemporaryDirectory(prefix="ranks_") as name:
        folder = Path(name)
        # Unpickled inside the rank's try block, so that an import error there is reported like any other failure.
        filters = [(action, _pattern(message), category, _pattern(module), line)
                   for action, message, category, module, line in warnings.filters]
        call = pickle.dumps((function, args, filters))
        processes = [
            server.Process(target=_rank, args=(rank, world_size, str(folder), dict(os.environ), call, timeout))
            for rank in range(world_size)
        ]
        try:
            for process in processes:
                process.start()
            _wait_for(processes, folder, timeout)
            return [pickle.loads((folder / f"result_{rank}").read_bytes()) for rank in range(world_size)]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


def _pattern(compiled: re.Pattern[str] | str | None) -> str:
    """What a filter matches; the interpreter's own filters hold a plain string or None."""
    if compiled is None or isinstance(compiled, str):
        return compiled or ""
    return compiled.pattern


def _wait_for(processes: list[BaseProcess], folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    running = dict(enumerate(processes))
    while running:
        wait([process.sentinel for process in running.values()], timeout=max(0.0, deadline - time.monotonic()))
        for rank, process in list(running.items()):
            if process.is_alive():
                continue
            del running[rank]
            if process.exitcode != 0:
                error = folder / f"error_{rank}"
                told = error.read_text() if error.exists() else "it left no traceback"
                raise RankFailure(f"rank {rank} of {len(processes)} ended with {process.exitcode}:\n{told}")
        if running and time.monotonic() >= deadline:
            raise RankFailure(f"ranks {sorted(running)} of {len(processes)} were still running after {timeout} seconds")


def start_afresh(environment: dict[str, str]) -> None:
    """What a forked process does first: what it has of its server is from when that was started."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a server that a data source started holds the trainer's signals
    os.environ.clear()
    os.environ.update(environment)


def _rank(rank: int, world_size: int, folder: str, environment: dict[str, str], call: bytes, timeout: float) -> None:
    start_afresh(environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    try:
        function, args, filters = pickle.loads(call)
        warnings.resetwarnings()
        for action, message, category, module, line in filters:
            warnings.filterwarnings(action, message, category, module, line, append=True)
        dist.init_process_group(
            "gloo", store=dist.FileStore(f"{folder}/store", world_size), rank=rank, world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        result = function(*args)
        if dist.is_initialized():
            dist.destroy_process_group()
        Path(folder, f"result_{rank}").write_bytes(pickle.dumps(result))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # the interpreter's clean-up once aborted in gloo's threads ("terminate called ...")
    except BaseException:
        Path(folder, f"error_{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None
