"""What a recipe will cost on so many GPUs, estimated here without one: memory, traffic, operations, time, money.

The run's own code takes a step for one of the ranks, with kernels that compute nothing and a process group that sends
nothing; seconds come from the GPU's data sheet, as a range. See docs/plan.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml

from ..core.errors import ConfigError, UserError
from ..core.files import read_regular, refuse_to_replace
from ..core.ranges import Range
from ..core.screen import say
from ..core.strict_json import parse_json
from ..core.typed import Mistake, build
from ..estimate.devices import GPUS, Gpu, gpu_of
from ..run.arguments import add_number, add_recipe, request_of
from ..run.config import RunConfig
from ..run.forecast.advice import Checked, search, that_are_faster, that_fit
from ..run.forecast.planning import Cluster, Plan, answer_of, calibrated, measured_to_estimated, plan_of
from ..run.load import load
from .plan_table import table

_GPUS_OF_A_NODE = 8


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The command's arguments."""

    recipe: str
    overrides: Sequence[str]
    ranks: int
    nodes: int | None
    gpu: str
    price_per_hour: float | None
    measured: Path | None
    advice: bool
    search: bool
    plot: Path | None

    def __post_init__(self) -> None:
        if self.plot is not None:
            refuse_to_replace(self.plot)

    @property
    def cluster(self) -> Cluster:
        whole, rest = divmod(self.ranks, _GPUS_OF_A_NODE)
        nodes = self.nodes or (whole if whole and not rest else 1)
        return Cluster(ranks=self.ranks, nodes=nodes, gpu=_gpu(self.gpu))

    def loaded(self, settings: Sequence[str] = ()) -> RunConfig:
        """The recipe, with settings over those that were given."""
        return load(RunConfig, self.recipe, [*self.overrides, *settings]).resolved()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add = parser.add_argument
    add_number(parser, "--ranks", int, Range(1, 1_000_000), required=True, metavar="N", help="GPUs it is to run on")
    add_number(parser, "--nodes", int, Range(1, 1_000_000), metavar="M",
        help=f"machines they are in (default: of {_GPUS_OF_A_NODE} GPUs)")
    add("--gpu", default="h100", metavar="NAME",
        help=f"{', '.join(GPUS)}, or figures \"{{memory: 80, tflops: 989, bandwidth: 3.35}}\" (default h100)")
    add_number(parser, "--price-per-hour", float, Range(0, 1e6), metavar="P", help="of one GPU, in any currency")
    add("--measured", type=Path, metavar="FILE",
        help="what `benchmark step --json` printed of any recipe on this kind of GPU: puts the seconds right")
    add("--advice", action="store_true",
        help="what would make it faster, where it fits; where it does not, what would make it fit is always said")
    add("--search", action="store_true", help="layouts that no other one beats in both memory and time")
    add("--plot", type=Path, metavar="FILE.png", help="the memory of a step, by player and kind")
    add("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    return plan_command(request_of(PlanRequest, options), as_json=options.json)


def plan_command(request: PlanRequest, *, as_json: bool) -> int:
    """Raises UserError for a recipe that could not run so, and for figures that cannot be used."""
    cluster, config = request.cluster, request.loaded()
    factor = None if request.measured is None else _factor(request.measured, cluster)
    plan = plan_of(config, cluster)
    shown = plan if factor is None else calibrated(plan, factor)
    answer: dict[str, Any] = {
        "recipe": request.recipe, "overrides": list(request.overrides), "gpu": request.gpu,
        **answer_of(shown, config, request.price_per_hour),
    }
    if not plan.fits:
        answer["advice"] = [*map(_told, that_fit(config, cluster, request.loaded))]
    elif request.advice:
        answer["advice"] = [*map(_told, that_are_faster(config, cluster, plan, request.loaded))]
    if request.search:
        answer["search"] = [*map(_told, search(config, cluster, request.loaded))]
    if request.plot is not None:
        from ..run.forecast.picture import draw_plan

        draw_plan(request.plot, plan, title=next(table(answer)))
    say(json.dumps(answer, indent=1) if as_json else "\n".join(table(answer)))
    return 0


def _gpu(text: str) -> Gpu:
    try:
        described = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--gpu {text}: {error}; give a name, or figures as a mapping in one line") from None
    return gpu_of(text, described)


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """What is read of a timed recipe."""

    recipe: str
    overrides: tuple[str, ...]
    ranks: Annotated[int, Range(1, 1_000_000)]
    seconds: Annotated[float, Range(above=0, high=1e9)]


def _factor(path: Path, cluster: Cluster) -> float:
    wanted = f"--measured {path}: wanted what `benchmark step --json` prints of a recipe"
    try:
        found = parse_json(read_regular(path))
        seconds = found["rows"][0]["seconds_per_step"]
        timed = build(
            _Timed, {**{name: found[name] for name in ("recipe", "overrides", "ranks")}, "seconds": seconds}, ()
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError, Mistake) as error:
        raise UserError(f"{wanted}, found {type(error).__name__}: {error}; measure one with --json") from None
    config = load(RunConfig, timed.recipe, timed.overrides).resolved()
    return measured_to_estimated(replace(config, pilot=None), cluster, timed.ranks, timed.seconds)


def _told(checked: Checked) -> dict[str, Any]:
    change, plan = checked.change, checked.plan
    told: dict[str, Any] = {"settings": list(change.settings), "ranks": change.ranks, "why": change.why}
    if plan is None:
        return told | {"refused": checked.refused}
    return told | {"needed_bytes": plan.needed, "fits": plan.fits, "seconds_per_step": _ends(plan)}


def _ends(plan: Plan) -> list[float]:
    slowest = max(plan.phases, key=lambda phase: phase.middle)
    return [slowest.low.total, slowest.high.total]
