"""How long the figures of an evaluation take once the features are there, and how much memory."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.random import tensor_generator
from ..core.ranges import Range
from ..core.screen import say
from ..evaluation.running import Gaussian, RunningGaussian
from ..evaluation.statistics import frechet_distance, precision_recall
from ..run.arguments import add_number, request_of
from ..train.hooks.console import CPU, most_memory


@dataclass(frozen=True, kw_only=True)
class EvaluationBenchmark:
    """The command's arguments. The features are normal noise of `dim` numbers."""

    samples: int  # of the statistics
    members: int  # on either side, for precision and recall
    dim: int
    batch: int

    def __post_init__(self) -> None:
        if min(self.samples, self.members, self.dim, self.batch) < 4:
            raise UserError("--samples, --members, --dim and --batch must all be at least 4")


@dataclass(frozen=True)
class _Row:
    name: str
    seconds: float
    peak_mib: float  # of the whole process so far, features included


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_number(parser, "--samples", int, Range(4, 100_000_000), default=50_000, metavar="N", help="default 50,000")
    add_number(parser, "--members", int, Range(4, 100_000_000), default=10_000, metavar="M",
        help="on either side (default 10,000)")
    add_number(parser, "--dim", int, Range(4, 1_000_000), default=2_048, metavar="D",
        help="numbers of a feature (default 2,048)")
    add_number(parser, "--batch", int, Range(4, 1_000_000), default=64, metavar="B",
        help="features at a time (default 64)")
    add("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    return benchmark_evaluation_command(request_of(EvaluationBenchmark, options), as_json=options.json)


def benchmark_evaluation_command(request: EvaluationBenchmark, *, as_json: bool) -> int:
    """Prints the seconds of streaming statistics, of a Frechet distance, and of precision and recall."""
    generator = tensor_generator("benchmark of the evaluation")
    features = torch.randn(max(request.samples, 2 * request.members), request.dim, generator=generator)
    features_mib = _peak_mib()
    rows: list[_Row] = []
    first = _timed(rows, "statistics", lambda: _statistics(features[:request.samples], request.batch))
    other = _statistics(features[: request.samples // 2], request.batch)
    _timed(
        rows, "Frechet distance",
        lambda: frechet_distance(first.mean, first.covariance, other.mean, other.covariance),
    )
    real, fake = features[:request.members], features[request.members:2 * request.members]
    _timed(rows, "precision and recall", lambda: precision_recall(real, fake))
    _print(request, rows, features_mib, as_json)
    return 0


def _statistics(features: Tensor, batch: int) -> Gaussian:
    running = RunningGaussian(features.shape[1], "cpu")
    for part in features.split(batch):
        running.add(part)
    return running.finish()


def _timed(rows: list[_Row], name: str, work: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = work()
    rows.append(_Row(name, time.perf_counter() - began, _peak_mib()))
    return result


def _peak_mib() -> float:
    return most_memory(CPU) / 2**20


def _print(request: EvaluationBenchmark, rows: list[_Row], features_mib: float, as_json: bool) -> None:
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
               "torch": torch.__version__}
    if as_json:
        found = {"machine": machine, "request": asdict(request), "features_mib": features_mib,
                 "rows": [asdict(row) for row in rows]}
        say(json.dumps(found, indent=1))
        return
    say(f"{request.samples:,} samples x {request.dim:,} features, {request.members:,} members on either side; "
          f"{machine['threads']} thread(s), {machine['cpu']}; the features alone: {features_mib:,.0f} MiB")
    for row in rows:
        say(f"{row.name:22} {row.seconds:8.1f} s   peak memory so far {row.peak_mib:,.0f} MiB")
