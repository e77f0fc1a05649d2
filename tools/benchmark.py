"""Times parts of the product on this machine.

    python tools/benchmark.py data [RECIPE] [a.b=c ...] [--json]
    python tools/benchmark.py evaluation [--json]
    python tools/benchmark.py traffic RECIPE [a.b=c ...] --ranks N [--json]
    python tools/benchmark.py step RECIPE [a.b=c ...] [--reference] [--json]      also under torchrun
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.benchmarks.data import DataBenchmark, benchmark_data_command
from afm_scale.benchmarks.evaluation import EvaluationBenchmark, benchmark_evaluation_command
from afm_scale.benchmarks.step import StepBenchmark, benchmark_step_command
from afm_scale.benchmarks.traffic import TrafficBenchmark, benchmark_traffic_command
from afm_scale.commands.ending import tell
from afm_scale.core.errors import RunError
from afm_scale.estimate.flops import PEAK_TFLOPS


def main() -> int:
    options = _parser().parse_args()
    try:
        return options.run(options)
    except RunError as error:
        return tell(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Times parts of the product on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="data sources beside plain webdataset, and whether they feed a recipe")
    data.add_argument("recipe", nargs="?", help="say how many images/s this recipe's step needs")
    data.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the recipe's")
    data.add_argument("--images", type=int, default=512, metavar="N", help="JPEGs to make (default 512)")
    data.add_argument("--batch", type=int, default=128, metavar="B", help="samples of a batch (default 128)")
    data.add_argument("--cores", type=int, metavar="K", help="cores, worker processes and threads (default: all)")
    data.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of one window (default 3)")
    data.add_argument("--windows", type=int, default=5, metavar="N", help="of every source (default 5)")
    data.add_argument("--gpu", default="h100", help=f"for the estimate: {', '.join(PEAK_TFLOPS)} (default h100)")
    data.add_argument("--utilisation", type=float, default=0.5, metavar="U", help="of its bf16 peak (default 0.5)")
    data.add_argument("--step-seconds", type=float, metavar="X", help="measured seconds of a step on one GPU instead")
    data.add_argument("--json", action="store_true", help="the result as JSON")
    data.set_defaults(run=_data)
    evaluation = commands.add_parser("evaluation", help="statistics, Frechet distance, precision and recall")
    evaluation.add_argument("--samples", type=int, default=50_000, metavar="N", help="default 50,000")
    evaluation.add_argument("--members", type=int, default=10_000, metavar="M", help="on either side (default 10,000)")
    evaluation.add_argument("--dim", type=int, default=2_048, metavar="D", help="numbers of a feature (default 2,048)")
    evaluation.add_argument("--batch", type=int, default=64, metavar="B", help="features at a time (default 64)")
    evaluation.add_argument("--json", action="store_true", help="the result as JSON")
    evaluation.set_defaults(run=_evaluation)
    traffic = commands.add_parser("traffic", help="collectives and bytes of one real step, counted over gloo")
    traffic.add_argument("recipe", help="runs as it is; make its networks smaller by overrides")
    traffic.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the recipe's")
    traffic.add_argument("--ranks", type=int, required=True, metavar="N", help="processes to start on this machine")
    traffic.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for all (default 600)")
    traffic.add_argument("--json", action="store_true", help="the result as JSON")
    traffic.set_defaults(run=_traffic)
    step = commands.add_parser("step", help="a training step: images/s, TFLOP/s, utilisation, memory")
    step.add_argument("recipe", help="on random samples of its shape; its data are not opened")
    step.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the recipe's")
    step.add_argument("--reference", action="store_true", help="time the published way of taking the step, too")
    step.add_argument("--reference-accumulation", type=int, metavar="N", help="default: the recipe's")
    step.add_argument("--reference-calls", default="one", metavar="one|four", help="of D in its own turn (default one)")
    step.add_argument("--steps", type=int, default=20, metavar="N", help="timed (default 20)")
    step.add_argument("--warm-up", type=int, default=5, metavar="N", help="steps before them (default 5)")
    step.add_argument("--gpu", help=f"whose peak counts: {', '.join(PEAK_TFLOPS)} (default: as the driver names it)")
    step.add_argument("--profile", type=Path, metavar="FILE", help="of one more step: a table, or a trace if .json")
    step.add_argument("--json", action="store_true", help="the result as JSON")
    step.set_defaults(run=_step)
    return parser


def _data(options: argparse.Namespace) -> int:
    benchmark = DataBenchmark(
        recipe=options.recipe, overrides=options.overrides, images=options.images, batch=options.batch,
        cores=options.cores, seconds=options.seconds, windows=options.windows, gpu=options.gpu,
        utilisation=options.utilisation, step_seconds=options.step_seconds,
    )
    return benchmark_data_command(benchmark, as_json=options.json)


def _evaluation(options: argparse.Namespace) -> int:
    benchmark = EvaluationBenchmark(
        samples=options.samples, members=options.members, dim=options.dim, batch=options.batch
    )
    return benchmark_evaluation_command(benchmark, as_json=options.json)


def _traffic(options: argparse.Namespace) -> int:
    request = TrafficBenchmark(
        recipe=options.recipe, overrides=options.overrides, ranks=options.ranks, timeout_seconds=options.timeout
    )
    return benchmark_traffic_command(request, as_json=options.json)


def _step(options: argparse.Namespace) -> int:
    request = StepBenchmark(
        recipe=options.recipe, overrides=tuple(options.overrides), steps=options.steps, warm_up=options.warm_up,
        reference=options.reference, reference_accumulation=options.reference_accumulation,
        reference_calls=options.reference_calls, gpu=options.gpu, profile=options.profile,
    )
    return benchmark_step_command(request, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
