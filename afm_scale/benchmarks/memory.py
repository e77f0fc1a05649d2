"""The estimate of `plan` beside real steps: the memory that torch's allocator handed out, by its profiler's events.

    python tools/benchmark.py memory            every row of the table in docs/plan.md
    python tools/benchmark.py memory RECIPE a.b=c ... --ranks N

Real steps run on processes of this machine, over gloo. Nothing of the estimator is in the measurement: the profiler
notes every block that the CPU's allocator gives and takes back, with the sum of all that is out. Blocks are not added
up here: those that a thread of gloo's frees (it has the last hand on copies that a reduction made) have no event.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import UserError
from ..core.ranges import Range
from ..core.screen import note, say
from ..parallel.launch import Ranks
from ..run.arguments import add_number, add_recipe
from ..run.build import build_plan, build_state
from ..run.config import RunConfig
from ..run.forecast.dry_run import dry_run, hollow_config
from ..run.load import load
from ..train.hooks.hook import HookList
from ..train.loop import train
from .spawned import on_ranks

MEMORY = 80 * 10**9  # of the device that both are told of, by which a plan may choose
_WATCHED = "the watched step"
_WATCHED_STEPS = 3
_ALLOCATION = torch._C._profiler._EventType.Allocation
_SMALL = (
    "data.shape=[4,16,16]", "model.generator.hidden_size=192", "model.generator.num_heads=3",
    "model.discriminator.hidden_size=192", "model.discriminator.num_heads=3", "hooks.samples=null",
)
_DEPTH = ("model.generator.depth=4", "model.discriminator.depth=4")
_AFM = ("afm_1step_tiny", *_SMALL, *_DEPTH, "data.global_batch=32")
_FLOW = ("flow_matching_b2", *(one for one in _SMALL if "discriminator" not in one), "model.generator.depth=6",
         "data.global_batch=64")
_TWICE, _FOUR = "model.generator.repetitions=2", "model.generator.repetitions=4"
ROWS: Sequence[tuple[int, Sequence[str]]] = (
    (1, (*_AFM, "parallel.plan=ddp")),
    (2, (*_AFM, "parallel.plan=ddp", _TWICE)),
    (2, (*_AFM, "parallel.fsdp2.policy=full")),
    (2, (*_AFM, "parallel.fsdp2.policy=zero2", _FOUR, "parallel.recompute=per_repetition")),
    (2, (*_AFM, "parallel.fsdp2.policy=whole", "parallel.precision=bf16")),
    (2, (*_AFM, "parallel.fsdp2.policy=full", _TWICE, "parallel.recompute=full", "loop.accumulation=2")),
    (1, (*_AFM, "parallel.plan=ddp", _FOUR, "parallel.recompute=selective")),
    (1, (*_AFM, "parallel.plan=ddp", _TWICE, "parallel.recompute={kind: every, k: 2}", "objective.update=one_pass")),
    (2, (*_AFM, "parallel.plan=megatron", "model.generator.num_heads=4", "model.discriminator.num_heads=4")),
    (2, (*_AFM, "parallel.plan=deepspeed", "parallel.deepspeed.stage=1")),
    (2, (*_AFM, "parallel.plan=deepspeed", "parallel.deepspeed.stage=2")),
    (2, (*_AFM, "parallel.plan=deepspeed", "parallel.deepspeed.stage=3")),
    (2, (*_FLOW, "parallel.fsdp2.policy=full", "parallel.precision=bf16", "parallel.recompute=full")),
    (1, (*_FLOW, "parallel.plan=ddp")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, required=False, note="default: all rows of the page")
    add_number(parser, "--ranks", int, Range(1, 100), default=1, metavar="N", help="of a recipe (default 1)")
    add_number(parser, "--timeout", float, Range(above=0, high=1e6), default=900.0, metavar="S",
        help="for the real steps of a row (default 900)")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    rows = ROWS if options.recipe is None else ((options.ranks, (options.recipe, *options.overrides)),)
    found = []
    for ranks, (recipe, *overrides) in rows:
        try:
            found.append(beside(recipe, overrides, ranks, options.timeout))
        except UserError as error:  # a package that is missing, say
            note(f"left out: {recipe} {' '.join(overrides)}: {error}")
            continue
        if not options.json:
            note(_line(found[-1]))
    say(json.dumps(found, indent=1) if options.json else "\n".join(_lines(found)))
    return 0


def beside(recipe: str, overrides: Sequence[str], ranks: int, timeout: float = 900.0) -> dict[str, Any]:
    """Bytes of rank 0 before a step and at its highest, estimated and measured."""
    estimated = dry_run(load(RunConfig, recipe, overrides).resolved(), ranks, memory=MEMORY).memory
    measured = on_ranks(ranks, timeout, measured_memory, recipe, tuple(overrides), ranks)[0]
    return {
        "recipe": recipe, "overrides": list(overrides), "ranks": ranks,
        "estimated": {"rest": estimated.rest.total, "peak": estimated.peak.total}, "measured": measured,
        "error": estimated.peak.total / measured["peak"] - 1,
    }


def measured_memory(recipe: str, overrides: Sequence[str], num_ranks: int, rank: int) -> dict[str, int]:
    """What this rank's tensors hold before its second step, and at most in a step; the process group is there already.

    Of several steps the one that came to least: where others use the machine, gloo's threads free their copies later.
    """
    config = hollow_config(load(RunConfig, recipe, overrides).resolved())
    ranks = Ranks(rank=rank, local_rank=rank, world_size=num_ranks, device=torch.device("cpu"), memory=MEMORY)
    plan = build_plan(config, ranks)
    _count_in_all_threads()
    gc.collect()  # what an earlier call in this process has left is not to be freed while this one looks
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watched:
        state = build_state(config, ranks, plan)
        with closing(state.data):
            train(state, plan, replace(config.loop, steps=1), HookList([]))
            for steps in range(2, 2 + _WATCHED_STEPS):
                with torch.profiler.record_function(_WATCHED):
                    train(state, plan, replace(config.loop, steps=steps), HookList([]))
    roots = watched.profiler.kineto_results.experimental_event_tree()
    events = sorted(_events(roots), key=lambda one: one.start_time_ns)
    watched_steps = [
        (one.start_time_ns, one.start_time_ns + one.duration_time_ns) for one in events if one.name == _WATCHED
    ]
    held = [(one.start_time_ns, one.extra_fields) for one in events if one.tag == _ALLOCATION]
    before = held[0][1].total_allocated - held[0][1].alloc_size
    rest = [fields.total_allocated for at, fields in held if at < watched_steps[0][0]][-1]
    peak = min(
        max(fields.total_allocated for at, fields in held if begin <= at <= end) for begin, end in watched_steps
    )
    return {"rest": rest - before, "peak": peak - before}


def _count_in_all_threads() -> None:
    """Else the sum that comes with an event is of this thread's blocks: torch has a switch for it, but no way to it."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def _events(roots: Iterable[Any]) -> Iterator[Any]:
    left = list(roots)
    while left:
        event = left.pop()
        yield event
        left.extend(event.children)


def _lines(found: Sequence[dict[str, Any]]) -> list[str]:
    head = ["| recipe and layout | ranks | measured peak, MB | estimated | error | between steps | estimated |",
            "|---|---|---|---|---|---|---|"]
    return [*head, *map(_line, found)]


def _line(row: dict[str, Any]) -> str:
    shown = [one for one in row["overrides"] if one not in _SMALL and one not in _DEPTH]
    measured, estimated = row["measured"], row["estimated"]
    return (
        f"| {' '.join((row['recipe'], *shown))} | {row['ranks']} | {measured['peak'] / 1e6:.2f} | "
        f"{estimated['peak'] / 1e6:.2f} | {row['error']:+.2%} | {measured['rest'] / 1e6:.2f} | "
        f"{estimated['rest'] / 1e6:.2f} |"
    )
