"""What one training step of a recipe sends between ranks: counted, not timed, on processes of this machine."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from ..core.errors import ConfigError, RunError, UserError
from ..core.ranges import Range
from ..core.screen import say
from ..parallel.launch import Ranks
from ..run.arguments import add_number, add_recipe, request_of
from ..run.build import build_plan, build_state
from ..run.check import check
from ..run.config import RunConfig
from ..run.load import load
from ..train.hooks.hook import HookList
from ..train.loop import train
from .tape import Tape, Traffic, WatchedPlan


@dataclass(frozen=True, kw_only=True)
class TrafficBenchmark:
    """The command's arguments."""

    recipe: str
    overrides: Sequence[str]
    ranks: int
    timeout_seconds: float

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise UserError(f"--ranks {self.ranks}: wanted 1 or more")
        if not self.timeout_seconds > 0:
            raise UserError(f"--timeout {self.timeout_seconds}: wanted more than 0 seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, note="runs as it is; make its networks smaller by overrides")
    add = parser.add_argument
    add_number(parser, "--ranks", int, Range(1, 1_000), required=True, metavar="N",
        help="processes to start on this machine")
    add_number(parser, "--timeout", float, Range(above=0, high=1e6), default=600.0, metavar="S", dest="timeout_seconds",
        help="for all (default 600)")
    add("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    return benchmark_traffic_command(request_of(TrafficBenchmark, options), as_json=options.json)


def benchmark_traffic_command(request: TrafficBenchmark, *, as_json: bool) -> int:
    """Prints the collectives of one step, with the bytes of each kind."""
    config = _on_cpu(load(RunConfig, request.recipe, request.overrides).resolved())
    check(config, request.ranks)  # here, so that a mistake is told once
    _print(request, config, measure_traffic(request), as_json)
    return 0


def measure_traffic(request: TrafficBenchmark) -> list[Traffic]:
    """The first step of the recipe, on `ranks` processes over gloo; what every rank issued.

    Raises RunError if a rank fails, is too slow, or issues other collectives than rank 0, and UserError as training
    would.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="traffic_") as name:
        folder = Path(name)
        processes = [spawn.Process(target=_rank, args=(rank, request, folder)) for rank in range(request.ranks)]
        try:
            for process in processes:
                process.start()
            _wait_for(processes, folder, request.timeout_seconds)
            texts = [(folder / f"traffic_{rank}").read_text() for rank in range(request.ranks)]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
    for rank, text in enumerate(texts):
        if text != texts[0]:
            raise RunError(f"rank {rank} issued other collectives than rank 0, which would end in a hang: {text}")
    return [Traffic(**row) for row in json.loads(texts[0])]


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


def _rank(rank: int, request: TrafficBenchmark, folder: Path) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // request.ranks))
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(str(folder / "store"), request.ranks), rank=rank, world_size=request.ranks,
            timeout=timedelta(seconds=request.timeout_seconds),
        )
        found = count_first_step(request, rank)
        (folder / f"traffic_{rank}").write_text(json.dumps([asdict(row) for row in found]))
        dist.destroy_process_group()
    except RunError as error:
        (folder / f"error_{rank}").write_text(str(error))
        raise SystemExit(error.exit_code) from None
    except BaseException:
        (folder / f"error_{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None
    os._exit(0)  # the interpreter's clean-up has been seen to abort in gloo's threads


def count_first_step(request: TrafficBenchmark, rank: int) -> list[Traffic]:
    """What this rank issues; the process group is there already, and every rank calls this."""
    config = _on_cpu(load(RunConfig, request.recipe, request.overrides).resolved())
    ranks = Ranks(rank=rank, local_rank=rank, world_size=request.ranks, device=torch.device("cpu"))
    plan = build_plan(config, ranks)
    state = build_state(config, ranks, plan)
    with closing(state.data):
        networks = {role.value: player.module for role, player in state.players.items()}
        networks |= {name: average.network for name, average in state.averages.items()} | dict(state.frozen)
        with Tape(networks) as tape:
            train(state, WatchedPlan(plan, tape), replace(config.loop, steps=1), HookList([]))
    return tape.traffic()


def _on_cpu(config: RunConfig) -> RunConfig:
    if config.loop.steps < 1:
        raise ConfigError("loop.steps is 0: there is no step to count")
    # fp8 needs a GPU; what is sent under it is what bf16 sends.
    precision = "bf16" if config.parallel.precision == "fp8" else config.parallel.precision
    # Compiled code cannot be watched, and sends what plain code does.
    parallel = replace(config.parallel, device="cpu", precision=precision, compile=False)
    return replace(config, parallel=parallel, model=replace(config.model, compile_guides=False))


def _print(request: TrafficBenchmark, config: RunConfig, found: Sequence[Traffic], as_json: bool) -> None:
    totals = list(_totals(found))
    if as_json:
        answer = {
            "recipe": request.recipe, "overrides": list(request.overrides), "ranks": request.ranks,
            "plan": config.parallel.plan, "torch": torch.__version__, "step": "the first",
            "rows": [asdict(row) for row in found], "totals": [asdict(row) for row in totals],
        }
        say(json.dumps(answer, indent=1))
        return
    words = " ".join((request.recipe, *request.overrides))
    say(f"{words}: first step on {request.ranks} rank(s) of gloo, plan {config.parallel.plan}, as one rank issues it")
    say(f"{'turn':14} {'phase':9} {'of':14} {'kind':15} {'count':>6} {'bytes':>15}")
    for row in (*found, *totals):
        say(f"{row.turn:14} {row.phase:9} {row.network:14} {row.kind:15} {row.count:6,} {row.bytes:15,}")
    say("bytes: of the whole tensor, as all-gathers leave it and as reductions take it")


def _totals(found: Sequence[Traffic]) -> Iterator[Traffic]:
    for kind in sorted({row.kind for row in found}):
        rows = [row for row in found if row.kind == kind]
        count, size = sum(row.count for row in rows), sum(row.bytes for row in rows)
        yield Traffic(turn="all", phase="all", network="all", kind=kind, count=count, bytes=size)
