"""How long a recipe's training step takes and what it computes, also beside the published way; also under torchrun."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from .. import __version__
from ..core.errors import ConfigError, RunError
from ..core.files import refuse_to_replace
from ..core.ranges import Range
from ..core.screen import say
from ..estimate.devices import GPUS, known_gpu
from ..parallel.agreement import check_same_on_all_ranks
from ..parallel.launch import Ranks, launch
from ..run.arguments import add_number, add_recipe, request_of
from ..run.build import build_plan, build_state
from ..run.check import check
from ..run.config import RunConfig
from ..run.forecast.counting import learner_flops, step_flops, step_parts
from ..run.load import dump_yaml, load
from .published_step import Calls, build_reference, reference_config
from .timing import Built, Timing, time_steps

LEGEND = (
    "timed: whole steps of the training loop (all turns, then the average), median of {steps} after {warm_up};",
    "  on one batch of random samples that is drawn before, so that none waits for data; without hooks",
    "images: of the learner's turn",
    "TFLOP/s: of one rank; forward and backward of the method's turns (products, convolutions, attention), counted",
    "  once, whatever is computed again. utilisation: their share of the GPU's dense bf16 peak, in any precision",
    "units: of one forward of G; to samples: a gradient that a loss takes by itself",
)


@dataclass(frozen=True, kw_only=True)
class StepBenchmark:
    """The command's arguments."""

    recipe: str
    overrides: Sequence[str] = ()
    steps: int = 20  # timed
    warm_up: int = 5  # before them: the first compiles, and opens gates that start at zero
    reference: bool = False
    reference_accumulation: int | None = None  # its microbatches; None: as many as the recipe's
    reference_calls: Calls = "one"
    count: bool = False  # count operations and take no step
    gpu: str | None = None  # None: as the driver names it
    profile: Path | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warm_up < 1:
            raise ConfigError(f"--steps {self.steps} and --warm-up {self.warm_up} must be at least 1")
        if self.gpu is not None and self.gpu not in GPUS:
            raise ConfigError(
                f"--gpu {self.gpu}: its peak is not known; known are {', '.join(GPUS)}; leave --gpu out for "
                "figures without a utilisation"
            )
        if self.count and (self.reference or self.profile is not None):
            raise ConfigError("--count takes no step: leave out --reference and --profile, or --count")
        if self.reference_calls not in get_args(Calls):
            raise ConfigError(f"--reference-calls {self.reference_calls}: wanted {' or '.join(get_args(Calls))}")
        if not self.reference and (self.reference_accumulation is not None or self.reference_calls != "one"):
            raise ConfigError("--reference-accumulation and --reference-calls describe the reference; add --reference")
        if self.reference_accumulation is not None and self.reference_accumulation < 1:
            raise ConfigError(f"--reference-accumulation {self.reference_accumulation} must be at least 1")
        if self.profile is not None and not self.profile.parent.is_dir():
            raise ConfigError(f"--profile {self.profile}: there is no folder {self.profile.parent}; make it")
        if self.profile is not None:
            refuse_to_replace(self.profile)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, note="on random samples of its shape; its data are not opened")
    add = parser.add_argument
    add("--reference", action="store_true", help="time the published way of taking the step, too")
    add_number(parser, "--reference-accumulation", int, Range(1, 1_000_000), metavar="N", help="default: the recipe's")
    add("--reference-calls", default="one", metavar="one|four", help="of D in its own turn (default one)")
    add_number(parser, "--steps", int, Range(1, 1_000_000), default=20, metavar="N", help="timed (default 20)")
    add_number(parser, "--warm-up", int, Range(1, 1_000_000), default=5, metavar="N",
        help="steps before them (default 5)")
    add("--count", action="store_true", help="count operations by turn and part, and take no step: on any machine")
    add("--gpu", help=f"whose peak counts: {', '.join(GPUS)} (default: as the driver names it)")
    add("--profile", type=Path, metavar="FILE", help="of one more step: a table, or a trace if .json")
    add("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    return benchmark_step_command(request_of(StepBenchmark, options), as_json=options.json)


@dataclass(frozen=True)
class _Way:
    """One way of taking the step."""

    name: str
    config: RunConfig
    build: Callable[[RunConfig], Built]
    profile: Path | None = None


def benchmark_step_command(request: StepBenchmark, *, as_json: bool) -> int:
    """Times, and prints on rank 0. Every rank calls it; raises what training would, and RunError if memory runs out."""
    config = load(RunConfig, request.recipe, request.overrides).resolved()
    if request.count:
        answer = {
            "recipe": request.recipe, "overrides": list(request.overrides), "parts": counted(config)
        }
        say(json.dumps(answer, indent=1) if as_json else "\n".join(describe_parts(answer["parts"])))
        return 0
    reference = reference_config(config, request.reference_accumulation) if request.reference else None
    with launch(config.parallel) as ranks:
        check_same_on_all_ranks(f"{dump_yaml(config)}{request}", "the configuration")
        ways = _ways(request, config, reference, ranks)
        for way in ways:
            check(way.config, ranks.world_size)
        answer = _about(request, config, ranks)
        try:
            for way in ways:
                timing = time_steps(
                    way.config, ranks, way.build, warm_up=request.warm_up, steps=request.steps, profile_to=way.profile
                )
                answer["rows"].append(_row(way.name, timing, answer))
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"{way.name}: the GPU's memory does not hold the step ({str(error).partition('.')[0]}); raise "
                f"{'loop.accumulation' if way.config is config else '--reference-accumulation'}"
            ) from error
        finally:  # what was measured before memory ran out
            if ranks.rank == 0 and answer["rows"]:
                _print(answer, as_json)
    return 0


def _ways(request: StepBenchmark, config: RunConfig, reference: RunConfig | None, ranks: Ranks) -> list[_Way]:
    def build(config: RunConfig) -> Built:
        plan = build_plan(config, ranks)
        return build_state(config, ranks, plan), plan

    ways = [_Way("recipe", config, build, request.profile)]
    if reference is not None:
        ways.append(
            _Way("reference", reference, lambda config: build_reference(config, ranks, request.reference_calls))
        )
    return ways


def _about(request: StepBenchmark, config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """What is measured on what; JSON values."""
    on_gpu = ranks.device.type == "cuda"
    device = torch.cuda.get_device_name(ranks.device) if on_gpu else "CPU"
    gpu = (request.gpu or known_gpu(device)) if on_gpu else None
    missing = f"the peak of {device!r} is not known: name one with --gpu" if on_gpu else "this ran on the CPU"
    return {
        "recipe": request.recipe, "overrides": list(request.overrides), "device": device, "ranks": ranks.world_size,
        "versions": {"afm_scale": __version__, "torch": torch.__version__, "cuda": torch.version.cuda},
        "global_batch": config.data.global_batch, "steps": request.steps, "warm_up": request.warm_up,
        "tflop_per_image": step_flops(config) / 1e12, "parts": counted(config),
        "peak_tflops": GPUS[gpu].tflops if gpu else None, "no_utilisation": None if gpu else missing, "rows": [],
    }


def counted(config: RunConfig) -> list[dict[str, Any]]:
    """Operations of a step for an image, by turn and part, in TFLOP and in units of one forward of G, as `step_parts`.

    A classifier's step has the forward of the classifier as its unit.
    """
    flops, unit = step_parts(config), learner_flops(config)
    rows = [{"turn": turn, "part": part, "tflop": found / 1e12, "units": found / unit}
            for (turn, part), found in flops.items()]
    total = sum(flops.values())
    return [*rows, {"turn": "all", "part": "all", "tflop": total / 1e12, "units": total / unit}]


def describe_parts(parts: Sequence[dict[str, Any]]) -> list[str]:
    """For people. A consistency-style update takes 4 units: forward, forward-mode derivative, backward."""
    lines = [f"{'turn':24} {'part':24} {'TFLOP/image':>12} {'units':>7}"]
    lines += [f"{row['turn']:24} {row['part']:24} {row['tflop']:12.5g} {row['units']:7.3f}" for row in parts]
    return [*lines, f"to a consistency-style update of the same G (4 units): {parts[-1]['units'] / 4:.3f}"]


def _row(name: str, timing: Timing, about: dict[str, Any]) -> dict[str, Any]:
    images_per_second = about["global_batch"] / timing.seconds_per_step
    tflops = images_per_second * about["tflop_per_image"] / about["ranks"]
    row = {
        "name": name, "settings": dict(timing.settings), "seconds_per_step": timing.seconds_per_step,
        "images_per_second": images_per_second, "tflops_per_rank": tflops,
        "utilisation": None if about["peak_tflops"] is None else tflops / about["peak_tflops"],
        "peak_memory_bytes": timing.peak_memory_bytes, "first_step_seconds": timing.first_step_seconds,
        "seconds": list(timing.seconds),
    }
    if about["rows"]:
        row["recipe_to_reference"] = about["rows"][0]["images_per_second"] / images_per_second
    return row


def _print(answer: dict[str, Any], as_json: bool) -> None:
    say(json.dumps(answer, indent=1) if as_json else describe(answer))


def describe(answer: dict[str, Any]) -> str:
    """The report for people."""
    versions = answer["versions"]
    lines = [
        f"{' '.join((answer['recipe'], *answer['overrides']))}: global batch {answer['global_batch']} on "
        f"{answer['ranks']} rank(s) of {answer['device']}, torch {versions['torch']}; "
        f"{answer['tflop_per_image']:.4g} TFLOP an image",
        f"{'':10} {'s/step':>9} {'spread':>7} {'images/s':>9} {'TFLOP/s':>8} {'utilisation':>11} {'peak memory':>12} "
        f"{'first step':>10}",
    ]
    for row in answer["rows"]:
        seconds = row["seconds"]
        low, high = min(seconds), max(seconds)
        spread = (high - low) / statistics.median(seconds)
        utilisation = "-" if row["utilisation"] is None else f"{row['utilisation']:.1%}"
        lines.append(
            f"{row['name']:10} {row['seconds_per_step']:9.4g} {spread:7.1%} {row['images_per_second']:9.4g} "
            f"{row['tflops_per_rank']:8.4g} {utilisation:>11} {row['peak_memory_bytes'] / 2**30:8.2f} GiB "
            f"{row['first_step_seconds']:8.3g} s"
        )
    for row in answer["rows"]:
        told = (f"{name} {value}" for name, value in row["settings"].items() if name != "ops")
        lines.append(f"{row['name']}: {', '.join(told)}")
    if len(answer["rows"]) == 2:
        ratio = answer["rows"][1]["recipe_to_reference"]
        lines.append(f"images/s of the recipe to those of the reference: {ratio:.3g}")
    lines += describe_parts(answer["parts"])
    lines += [line.format(steps=answer["steps"], warm_up=answer["warm_up"]) for line in LEGEND]
    if answer["no_utilisation"]:
        lines.append(f"no utilisation: {answer['no_utilisation']}")
    if answer["device"] == "CPU":
        lines.append("peak memory on the CPU is the process's, everything before included")
    return "\n".join(lines)
