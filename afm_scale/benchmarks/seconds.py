"""The estimate of `plan` beside timed steps: put right by one recipe, and compared on others.

    python tools/benchmark.py seconds [--ranks 2] [--repeats 5]

All rows are built in one process group and take their steps in turns, so that a machine that is slower for a while is
so for all. What is compared are a rank's CPU seconds, of one thread for products: other work of the machine adds to the
time on the wall, which is given too. The figures of the machine that a data sheet would have are measured in between,
and what its host takes by steps of networks that have next to nothing to compute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import gelu, layer_norm

from ..core.ranges import Range
from ..core.screen import say
from ..estimate.devices import Gpu
from ..parallel.launch import Ranks
from ..run.arguments import add_number
from ..run.build import build_plan, build_state
from ..run.config import RunConfig
from ..run.forecast.dry_run import hollow_config
from ..run.forecast.planning import Cluster, PhasePlan, plan_of
from ..run.load import load
from ..train.hooks.hook import HookList
from ..train.loop import train
from .spawned import on_ranks
from .timing import HeldBatch

_MEMORY = 80 * 10**9  # that plans choose by
_SMALL = (
    "data.shape=[4,16,16]", "model.generator.hidden_size=192", "model.generator.num_heads=3",
    "model.generator.depth=4", "hooks.samples=null", "parallel.precision=fp32",
)
_AFM = (
    "afm_1step_tiny", *_SMALL, "model.discriminator.hidden_size=192", "model.discriminator.num_heads=3",
    "model.discriminator.depth=4", "data.global_batch=32",
)
_FLOW = ("flow_matching_b2", *_SMALL, "data.global_batch=32")
_MEAN = ("mean_flow_b2", *_SMALL, "data.global_batch=16")
ROWS: Sequence[Sequence[str]] = (  # the first one puts the others right
    (*_AFM, "parallel.plan=ddp"),
    (*_AFM, "parallel.plan=fsdp2", "parallel.fsdp2.policy=full", "model.generator.repetitions=2"),
    (*_AFM, "parallel.plan=fsdp2", "parallel.fsdp2.policy=zero2", "model.generator.repetitions=4",
     "parallel.recompute=full"),
    (*_AFM, "parallel.plan=ddp", "objective.update=one_pass", "loop.accumulation=2"),
    (*_FLOW, "parallel.plan=ddp"),
    (*_MEAN, "parallel.plan=fsdp2", "parallel.fsdp2.policy=zero2"),
)
_TINY = tuple(
    f"model.{network}.{size}" for network in ("generator", "discriminator")
    for size in ("hidden_size=48", "num_heads=1")
)
# What their steps take beside all that is known of them is the host's, for each of so many of these.
HOST_ROWS: Mapping[str, Sequence[str]] = {
    "host": (*_AFM, *_TINY, "data.global_batch=4", "parallel.plan=ddp"),
    "hook": (*_AFM, *_TINY, "data.global_batch=4", "parallel.plan=fsdp2", "parallel.fsdp2.policy=full"),
    "again": (*_AFM, *_TINY, "data.global_batch=4", "parallel.plan=ddp", "parallel.recompute=full"),
}
_PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution",
    "aten::convolution_backward", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
)
TERMS = ("products", "others", "collectives", "host")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--ranks", int, Range(1, 100), default=2, metavar="N", help="processes (default 2)")
    add_number(parser, "--repeats", int, Range(1, 1_000), default=5, metavar="N", help="steps of a row (default 5)")
    add_number(parser, "--timeout", float, Range(above=0, high=1e6), default=3600.0, metavar="S",
        help="for all (default 3600)")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    rows = [(row[0], tuple(row[1:])) for row in (*HOST_ROWS.values(), *ROWS)]
    load_before = os.getloadavg()[0]
    measured = on_ranks(options.ranks, options.timeout, timed, rows, options.ranks, options.repeats)[0]
    of_host, timings = measured["rows"][:len(HOST_ROWS)], measured["rows"][len(HOST_ROWS):]
    gpu = with_host(
        Gpu(name="this machine", measured=True, memory=_MEMORY / 1e9, **measured["figures"]), options.ranks,
        [statistics.median(row["cpu"]) for row in of_host],
    )
    found, factor = [], None
    for (recipe, overrides), row in zip(rows[len(HOST_ROWS):], timings, strict=True):
        phase = _planned(recipe, overrides, gpu, options.ranks)
        seconds = statistics.median(row["cpu"])
        factor = seconds / phase.middle if factor is None else factor
        found.append({
            "recipe": recipe, "overrides": list(overrides), "cpu_seconds": row["cpu"], "wall_seconds": row["wall"],
            "estimated": phase.middle * factor, "error": phase.middle * factor / seconds - 1,
            "estimated_terms": {term: _middle(phase, term) * factor for term in TERMS},
            "measured_terms": {term: share * seconds for term, share in row["shares"].items()},
        })
    answer = {
        "ranks": options.ranks, "factor": factor, "rows": found,
        "figures": measured["figures"] | {name: getattr(gpu, name) for name in HOST_ROWS},
        "load": [load_before, os.getloadavg()[0]],
    }
    say(json.dumps(answer, indent=1) if options.json else "\n".join(_lines(answer)))
    return 0


def with_host(gpu: Gpu, num_ranks: int, seconds: Sequence[float]) -> Gpu:
    """With what its host takes around each of the things of HOST_ROWS, whose steps took so many CPU seconds."""
    for (name, row), taken in zip(HOST_ROWS.items(), seconds, strict=True):
        phase = _planned(row[0], row[1:], gpu, num_ranks)
        kernels, around = sum(found.total() for found in phase.run.costs.values()), phase.run.around
        count = {"host": kernels, "hook": around.hooks, "again": around.again}[name]
        gpu = replace(gpu, **{name: max(0.0, taken - phase.middle) / count * 1e6})
    return gpu


def _planned(recipe: str, overrides: Sequence[str], gpu: Gpu, num_ranks: int) -> PhasePlan:
    config = hollow_config(load(RunConfig, recipe, overrides).resolved())
    return plan_of(config, Cluster(ranks=num_ranks, nodes=1, gpu=gpu)).phases[0]


def timed(
    rows: Sequence[tuple[str, Sequence[str]]], num_ranks: int, repeats: int, rank: int
) -> dict[str, Any]:
    """Of this rank: CPU and wall seconds of steps of each row, shares of what they are made of, and figures of the
    machine; the process group is there already."""
    torch.set_num_threads(1)
    ranks = Ranks(rank=rank, local_rank=rank, world_size=num_ranks, device=torch.device("cpu"), memory=_MEMORY)
    with ExitStack() as open_until_the_end:
        steps = [_stepping(open_until_the_end, ranks, recipe, overrides) for recipe, overrides in rows]
        for step in steps:
            step()
        found: list[dict[str, Any]] = [{"cpu": [], "wall": []} for _ in rows]
        figures: list[Mapping[str, float]] = []
        for _ in range(repeats):
            figures.append(_figures(num_ranks))
            for step, row in zip(steps, found, strict=True):
                cpu, wall = _clocked(step)
                row["cpu"].append(cpu)
                row["wall"].append(wall)
        for step, row in zip(steps, found, strict=True):
            row["shares"] = _shares(step)
    return {
        "rows": found,
        "figures": {name: statistics.median(one[name] for one in figures) for name in figures[0]},
    }


def _stepping(
    open_until_the_end: ExitStack, ranks: Ranks, recipe: str, overrides: Sequence[str]
) -> Callable[[], None]:
    """Takes one more step at every call."""
    config = hollow_config(load(RunConfig, recipe, overrides).resolved())
    plan = build_plan(config, ranks)
    state = build_state(config, ranks, plan)
    state.data = HeldBatch(open_until_the_end.enter_context(closing(state.data)))
    return lambda: train(state, plan, replace(config.loop, steps=state.step + 1), HookList([]))


def _clocked(step: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds of this process and seconds on the wall."""
    dist.barrier()
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - wall


def _figures(num_ranks: int) -> dict[str, float]:
    """What a data sheet would have, by CPU seconds, and what gloo takes around a collective."""
    times, wide = 10, torch.randn(512, 768)
    x, weight = torch.randn(1024, 384), torch.randn(384, 1536)
    product, _ = _clocked(lambda: [x @ weight for _ in range(times)])
    moved, _ = _clocked(lambda: [layer_norm(gelu(wide) + wide, (768,)) for _ in range(2 * times)])
    tflops = times * 2 * x.numel() * 1536 / product / 1e12
    figures = {
        "tflops": tflops, "tflops_fp32": tflops, "tflops_tf32": tflops,
        "bandwidth": 2 * times * 7 * wide.nbytes / moved / 1e12,  # read and written: 2, 3 and 2
    }
    if num_ranks > 1:
        said, _ = _clocked(lambda: [dist.all_reduce(torch.zeros(8)) for _ in range(times)])
        sent, _ = _clocked(lambda: [dist.all_reduce(wide) for _ in range(2 * times)])
        figures["latency"] = said / times * 1e6
        figures["link"] = 2 * times * 2 * wide.nbytes * (num_ranks - 1) / num_ranks / sent / 1e9
    return figures


def _shares(step: Callable[[], Any]) -> dict[str, float]:
    """Of a step, by torch's profiler: what its products, its other kernels and its collectives take by themselves."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        before = time.perf_counter()
        step()
        total = (time.perf_counter() - before) * 1e6
    taken = dict.fromkeys(TERMS, 0.0)
    for event in watched.key_averages():
        if event.key in _PRODUCTS:
            taken["products"] += event.self_cpu_time_total
        elif event.key.startswith(("c10d::", "gloo:")):
            taken["collectives"] += event.self_cpu_time_total
        elif event.key.startswith("aten::"):
            taken["others"] += event.self_cpu_time_total
    shares = {name: found / total for name, found in taken.items()}
    return shares | {"host": 1 - sum(shares.values())}


def _middle(phase: PhasePlan, term: str) -> float:
    return (getattr(phase.low, term) * getattr(phase.high, term)) ** 0.5


def _lines(answer: dict[str, Any]) -> list[str]:
    rows, figures = answer["rows"], answer["figures"]
    others = [abs(row["error"]) for row in rows[1:]]
    head = "".join(f" {term}: estimated / measured |" for term in TERMS)
    return [
        f"ranks {answer['ranks']}; load of the machine {answer['load'][0]:.1f} before, {answer['load'][1]:.1f} after; "
        + ", ".join(f"{name} {found:.4g}" for name, found in figures.items())
        + f"; measured to estimated {answer['factor']:.3g}, by the first row",
        f"| recipe and layout | CPU s a step | spread | s on the wall | estimated | error |{head}",
        "|---" * (6 + len(TERMS)) + "|",
        *map(_line, rows),
        f"errors of those after the first: mean {statistics.mean(others):.1%}, most {max(others):.1%}",
    ]


def _line(row: dict[str, Any]) -> str:
    shown = " ".join(one for one in row["overrides"] if one not in _AFM and one not in _FLOW and one not in _MEAN)
    cpu = row["cpu_seconds"]
    middle = statistics.median(cpu)
    terms = "".join(
        f" {row['estimated_terms'][term]:.3f} / {row['measured_terms'][term]:.3f} |" for term in TERMS
    )
    return (
        f"| {row['recipe']} {shown} | {middle:.3f} | {(max(cpu) - min(cpu)) / middle:.0%} | "
        f"{statistics.median(row['wall_seconds']):.2f} | {row['estimated']:.3f} | {row['error']:+.1%} |{terms}"
    )
