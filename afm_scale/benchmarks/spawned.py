"""A function on several processes of this machine that share a gloo group, without a launcher."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..core.errors import RunError, UserError


def on_ranks(num_ranks: int, timeout_seconds: float, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments, rank)` gives on every rank, as plain JSON values.

    The function is one of a module's, its arguments can be pickled. Raises RunError if a rank fails or is too slow, and
    UserError where a rank does.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="ranks_") as name:
        folder = Path(name)
        processes = [
            spawn.Process(target=_rank, args=(rank, num_ranks, timeout_seconds, folder, function, arguments))
            for rank in range(num_ranks)
        ]
        try:
            for process in processes:
                process.start()
            _wait_for(processes, folder, timeout_seconds)
            return [json.loads((folder / f"found_{rank}").read_text()) for rank in range(num_ranks)]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


def _wait_for(processes: Sequence[BaseProcess], folder: Path, timeout: float) -> None:
    deadline, running = time.monotonic() + timeout, dict(enumerate(processes))
    while running:
        wait([process.sentinel for process in running.values()], timeout=max(0.0, deadline - time.monotonic()))
        for rank, process in list(running.items()):
            if process.is_alive():
                continue
            del running[rank]
            if process.exitcode != 0:
                error = folder / f"error_{rank}"
                told = error.read_text() if error.exists() else f"rank {rank} ended with {process.exitcode}"
                raise (UserError if process.exitcode == UserError.exit_code else RunError)(told)
        if running and time.monotonic() >= deadline:
            raise RunError(
                f"ranks {sorted(running)} of {len(processes)} were still running after {timeout:g} seconds; give them "
                "more by --timeout, or make the networks smaller by overrides"
            )


def _rank(
    rank: int, num_ranks: int, timeout: float, folder: Path, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_ranks))
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(str(folder / "store"), num_ranks), rank=rank, world_size=num_ranks,
            timeout=timedelta(seconds=timeout),
        )
        (folder / f"found_{rank}").write_text(json.dumps(function(*arguments, rank)))
        dist.destroy_process_group()
    except RunError as error:
        (folder / f"error_{rank}").write_text(str(error))
        raise SystemExit(error.exit_code) from None
    except BaseException:
        (folder / f"error_{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None
    os._exit(0)  # the interpreter's clean-up has been seen to abort in gloo's threads
