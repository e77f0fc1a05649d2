"""Compares runs on the plane's mixture: what guidance does to the samples, as a table and a picture.

For example: guidance_figure guidance.png unguided=runs/mixture2d_afm flow=runs/mixture2d_afm_flow
Draws the data and one panel for each name, and prints where the samples lie about the centres of their classes: the
mean and the deviation over the runs of a name, which differ by their seed; the first of them is drawn.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from ..core.errors import UserError
from ..core.ranges import LARGEST_WHOLE, Range
from ..core.screen import say
from ..core.typed import build
from ..core.types import Batch, Role
from ..data.toys.mixture2d import ClassMixture, Mixture2DConfig
from ..evaluation.toys.mixture2d import ClassQuality, class_quality, data_samples, draw_classes
from ..parallel.launch import Ranks
from ..run.arguments import add_number
from ..run.checkpoints import on_device, open_checkpoint
from ..run.tables import show_table


@dataclass(frozen=True, kw_only=True)
class GuidanceFigure:
    """The command's arguments."""

    picture: Path
    runs: Mapping[str, Sequence[Path]]  # by the name of a panel: runs that differ by their seed; the first is drawn
    num_samples: int = 4500
    seed: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, metavar="OUT.png")
    parser.add_argument("runs", nargs="+", type=_panel, metavar="NAME=RUN[,RUN...]")
    add_number(parser, "--samples", int, Range(100, 10_000_000), default=4500, metavar="N",
        help="of every run (default 4500)")
    add_number(parser, "--seed", int, Range(0, LARGEST_WHOLE), default=0, metavar="S",
        help="of their noise (default 0)")


def run(options: argparse.Namespace) -> int:
    return guidance_figure_command(GuidanceFigure(
        picture=options.picture, runs=dict(options.runs), num_samples=options.samples, seed=options.seed
    ))


def _panel(text: str) -> tuple[str, list[Path]]:
    name, equals, folders = text.partition("=")
    if not (name and equals and folders):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted NAME=RUN or NAME=RUN,RUN")
    return name, [Path(folder) for folder in folders.split(",")]


def guidance_figure_command(request: GuidanceFigure) -> int:
    """Writes the picture and prints the table: mean over the runs of a panel and, of several, their deviation.

    Raises UserError if a run is of other data, or one is of another mixture than the rest.
    """
    samples: dict[str, list[Batch]] = {}
    mixture: ClassMixture | None = None
    for name, folders in request.runs.items():
        for folder in folders:
            batch, theirs = _samples_of(folder, request)
            if mixture not in (None, theirs):
                raise UserError(f"{folder} was trained on another mixture than the runs before it; compare runs on one")
            mixture = theirs
            samples.setdefault(name, []).append(batch)
    if mixture is None:
        raise UserError("no run was given; wanted NAME=FOLDER[,FOLDER...]")
    samples = {"data": [data_samples(mixture, request.num_samples)], **samples}
    draw_classes(request.picture, {name: batches[0] for name, batches in samples.items()}, mixture)
    _print_table({
        name: [class_quality(batch.x, batch.y, mixture) for batch in batches] for name, batches in samples.items()
    })
    say(f"picture: {request.picture}")
    return 0


def _samples_of(folder: Path, request: GuidanceFigure) -> tuple[Batch, ClassMixture]:
    """Samples of a run's average, the same noise for every run, and the mixture it was trained on."""
    checkpoint = open_checkpoint(folder, holds=Role.GENERATOR)
    data = checkpoint.card.data
    if data["kind"] != Mixture2DConfig.kind:
        raise UserError(f"{folder} is a run on data of kind {data['kind']!r}; wanted 'mixture2d'")
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    subject = checkpoint.subject(ranks, on_device(checkpoint.parallel, "cpu"))
    x, y = subject.generate(subject.stream(seed=request.seed), request.num_samples)
    return Batch(x, y), build(ClassMixture, data["distribution"], ("data", "distribution"))


def _print_table(found: Mapping[str, Sequence[ClassQuality]]) -> None:
    rows = []
    for name, qualities in found.items():
        columns = zip(*map(astuple, qualities), strict=True)
        rows.append((name, str(len(qualities)), *map(_mean, columns)))
    show_table(None, rows, columns=("", "runs", *(field.name.replace("_", " ") for field in fields(ClassQuality))))


def _mean(values: Sequence[float]) -> str:
    mean = f"{math.fsum(values) / len(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
