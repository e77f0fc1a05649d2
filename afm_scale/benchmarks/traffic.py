"""What one training step of a recipe sends between ranks: counted, not timed, on processes of this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..core.errors import ConfigError, RunError, UserError
from ..core.ranges import Range
from ..core.screen import say
from ..parallel.launch import Ranks
from ..run.arguments import add_number, add_recipe, request_of
from ..run.build import build_plan, build_state
from ..run.check import check
from ..run.config import RunConfig
from ..run.forecast.tape import Tape, Traffic, WatchedPlan
from ..run.load import load
from ..train.hooks.hook import HookList
from ..train.loop import train
from .spawned import on_ranks


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
    found = on_ranks(request.ranks, request.timeout_seconds, _rows_of_first_step, request)
    for rank, rows in enumerate(found):
        if rows != found[0]:
            told = json.dumps(rows)
            raise RunError(f"rank {rank} issued other collectives than rank 0, which would end in a hang: {told}")
    return [Traffic(**row) for row in found[0]]


def _rows_of_first_step(request: TrafficBenchmark, rank: int) -> list[dict[str, Any]]:
    return [asdict(row) for row in count_first_step(request, rank)]


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
