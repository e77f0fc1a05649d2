"""What a recipe will cost on so many GPUs, estimated here without one: memory, traffic, operations, time, money.

The run's own code takes a step for one of the ranks, with kernels that compute nothing and a process group that sends
nothing; seconds come from the GPU's data sheet, as a range. See docs/plan.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from ..core.errors import ConfigError
from ..core.ranges import Range
from ..core.screen import say
from ..estimate.gpus import GPUS, Gpu, gpu_of
from ..estimate.memory import KINDS
from ..run.arguments import add_number, add_recipe
from ..run.config import RunConfig
from ..run.load import load
from ..run.planning import OUTSIDE, SLACK, Cluster, answer_of, plan_of

_GPUS_OF_A_NODE = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add = parser.add_argument
    add_number(parser, "--ranks", int, Range(1, 1_000_000), required=True, metavar="N", help="GPUs it is to run on")
    add_number(parser, "--nodes", int, Range(1, 1_000_000), metavar="M",
        help=f"machines they are in (default: of {_GPUS_OF_A_NODE} GPUs)")
    add("--gpu", default="h100", metavar="NAME",
        help=f"{', '.join(GPUS)}, or figures \"{{memory: 80, tflops: 989, bandwidth: 3.35}}\" (default h100)")
    add_number(parser, "--price-per-hour", float, Range(0, 1e6), metavar="P", help="of one GPU, in any currency")
    add("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    cluster = Cluster(
        ranks=options.ranks, nodes=options.nodes or _nodes(options.ranks), gpu=_gpu(options.gpu),
    )
    config = load(RunConfig, options.recipe, options.overrides).resolved()
    answer = {
        "recipe": options.recipe, "overrides": list(options.overrides), "gpu": options.gpu,
        **answer_of(plan_of(config, cluster), config, options.price_per_hour),
    }
    say(json.dumps(answer, indent=1) if options.json else "\n".join(_table(answer)))
    return 0


def _nodes(ranks: int) -> int:
    return max(1, ranks // _GPUS_OF_A_NODE) if ranks % _GPUS_OF_A_NODE == 0 or ranks < _GPUS_OF_A_NODE else 1


def _gpu(text: str) -> Gpu:
    try:
        described = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--gpu {text}: {error}; give a name, or figures as a mapping in one line") from None
    return gpu_of(text, described)


def _table(answer: dict[str, Any]) -> Iterator[str]:
    yield (
        f"ESTIMATE of {' '.join((answer['recipe'], *answer['overrides']))} on {answer['ranks']} GPU(s) in "
        f"{answer['nodes']} node(s), {answer['gpu']}"
    )
    networks = answer["plan"]["networks"]
    policies = "; ".join(f"{name} {network['policy']}" for name, network in networks.items() if "policy" in network)
    yield (
        f"plan {answer['plan']['plan']}{f' ({policies})' if policies else ''}, {answer['plan']['precision']}, recompute "
        f"{answer['plan']['recompute']}"
    )
    for phase in answer["phases"]:
        yield ""
        if len(answer["phases"]) > 1:
            yield f"phase {phase['name']}"
        yield from _memory(phase["memory"])
        yield from _traffic(phase)
        yield from _time(phase)
    verdict = "fits" if answer["fits"] else "DOES NOT FIT"
    yield ""
    yield (
        f"{verdict}: {answer['needed_bytes'] / 1e9:.1f} GB of {answer['gpu_memory_bytes'] / 1e9:.0f} GB, as the peak x "
        f"{SLACK} for the allocator, and {OUTSIDE / 1e9:.1f} GB for CUDA and NCCL"
    )
    yield from (f"note: {note}" for note in answer["notes"])


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    """Bytes by network and kind at the peak, with what lies there between steps."""
    peak, parts = memory["peak"], memory["peak"]["parts"]
    split = {tuple(name.split(" ", 1)): size for name, size in parts.items()}
    networks = sorted({network for network, _ in split})
    yield f"memory of rank 0, GB: the peak is in the {peak['mover']}'s {peak['when']}"
    yield f"{'':24}" + "".join(f"{network:>15}" for network in networks) + f"{'all':>12}"
    for kind in KINDS:
        sizes = [split.get((network, kind), 0) for network in networks]
        if sum(sizes):
            yield f"{kind:24}" + "".join(f"{size / 1e9:15.3f}" for size in sizes) + f"{sum(sizes) / 1e9:12.3f}"
    yield f"{'peak':24}{'':{15 * len(networks)}}{peak['bytes'] / 1e9:12.3f}"
    yield f"{'between steps':24}{'':{15 * len(networks)}}{memory['rest']['bytes'] / 1e9:12.3f}"
    others = ", ".join(f"{turn['mover']}'s {turn['when']} {turn['bytes'] / 1e9:.3f}" for turn in memory["turns"]
                       if turn["mover"] != "none")
    yield f"highest in each part of the step: {others}"


def _traffic(phase: dict[str, Any]) -> Iterator[str]:
    links = ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in phase["links"].items() if size >= 1e6)
    yield f"sent in a step, whole tensors: {links or 'next to nothing'}"
    total = sum(phase["operations"].values())
    yield f"operations of a rank in a step: {total / 1e12:.2f} TFLOP (" + ", ".join(
        f"{name} {found / 1e12:.2f}" for name, found in phase["operations"].items() if found) + ")"


def _time(phase: dict[str, Any]) -> Iterator[str]:
    low, high = phase["seconds_per_step"]
    yield f"seconds of a step: {low:.3g} to {high:.3g}"
    if phase["gpu_hours"] is not None:
        hours = _range(phase["gpu_hours"])
        cost = "" if phase["cost"] is None else f", cost {_range(phase['cost'])}"
        yield f"GPU hours for {phase['steps']:,} steps: {hours}{cost}"


def _range(ends: Sequence[float]) -> str:
    return " to ".join(f"{end:,.3g}" if end < 100 else f"{end:,.0f}" for end in ends)
