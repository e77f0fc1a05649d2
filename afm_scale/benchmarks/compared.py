"""What became of a comparison: a table in Markdown, and a picture of the figures and of how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..core.files import read_regular, write_atomically
from .comparison import EQUAL, ComparisonConfig, Job, mean_and_spread, operations

_INK, _COLOURS = "#1c2833", ("#2471a3", "#c0392b", "#1e8449", "#b9770e", "#6c3483", "#17a589", "#7f8c8d", "#000000")
_ABREAST = 5  # panels in a row of the picture
_FAR = 4  # values so many times larger than others are drawn on a logarithmic scale


@dataclass(frozen=True)
class Outcome:
    """What is known of the runs so far."""

    config: ComparisonConfig
    jobs: Sequence[Job]
    summaries: Mapping[Job, Mapping[str, Any]] = field(repr=False)  # of those that have ended
    failures: Mapping[Job, str]  # last words of those that stopped with an error
    operations: Mapping[tuple[str, str], float]  # by (way, data)
    # of the first updates, by (way, data, how many); kept from picture to picture, since counting takes seconds
    costs: dict[tuple[str, str, int], float] = field(default_factory=dict, repr=False)

    def of(self, way: str, data: str) -> list[Job]:
        return [job for job in self.jobs if (job.way, job.data) == (way, data)]

    def cost(self, job: Job, step: int) -> float:
        """Operations of a run up to an update: those of any seed."""
        key = job.way, job.data, step
        if key not in self.costs:
            self.costs[key] = operations(job.config, step)
        return self.costs[key]

    def values(self, way: str, data: str, figure: str) -> list[float]:
        """One for each run that has ended and has it."""
        found = [job.figure(figure, self.summaries[job]) for job in self.of(way, data) if job in self.summaries]
        return [float(value) for value in found if value is not None]


def unequal(outcome: Outcome) -> list[str]:
    """A warning for each of the data on which a way does more operations than another, beyond `EQUAL`."""
    warnings = []
    for data in outcome.config.data:
        found = {way: outcome.operations[way, data] for way in outcome.config.ways}
        least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        if found[most] > (1 + EQUAL) * found[least]:
            warnings.append(
                f"{data}: operations are not equal: {most!r} takes {found[most] / found[least]:.2f} times those of "
                f"{least!r}"
            )
    return warnings


def table(outcome: Outcome) -> str:
    """Markdown: a row for each way and data, mean ± sample standard deviation over the seeds."""
    config = outcome.config
    heads = ["data", "way", "runs", "operations", *map(_title, config.figures),
             *(config.events or {})]
    lines = [f"## {config.title}", "", _row(heads), _row(["---"] * len(heads))]
    for data in config.data:
        for way in config.ways:
            jobs = outcome.of(way, data)
            ended = [job for job in jobs if job in outcome.summaries]
            row = [data, way, f"{len(ended)} of {len(jobs)}", f"{outcome.operations[way, data]:.3g}"]
            row += [shown(outcome.values(way, data, figure)) for figure in config.figures]
            row += [", ".join(str(job.counted(wanted)) for job in jobs) for wanted in (config.events or {}).values()]
            lines.append(_row(row))
    seeds = ", ".join(map(str, config.seeds))
    lines += ["", f"Mean ± sample standard deviation over the seeds {seeds}; events: of each seed. Operations: of all "
              "updates of a run, counted (forward and backward, multiply and add apart)."]
    lines += [f"- {warning}" for warning in unequal(outcome)]
    lines += [f"- failed: {job.name}: {words}" for job, words in outcome.failures.items()]
    return "\n".join(lines) + "\n"


def shown(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, spread = mean_and_spread(values)
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def _title(figure: str) -> str:
    name, _, steps = figure.replace("_", " ").partition("@")
    return f"{name}, {steps} step{'s' if steps != '1' else ''}" if steps else name


def _row(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "/") for word in words) + " |"


def draw(path: Path, outcome: Outcome) -> None:
    """Draws to a PNG: for each of the data rows of final figures (a dot a seed, a bar their mean) and of curves."""
    config = outcome.config
    rows = [
        (data, names[first:first + _ABREAST], by_step)
        for data in config.data for names, by_step in ((config.figures, False), (config.curves, True))
        for first in range(0, len(names), _ABREAST)
    ]
    columns = max(len(figures) for _, figures, _ in rows)
    figure = Figure(figsize=(3.3 * columns, 2.9 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (data, names, by_step) in zip(axes, rows, strict=True):
        for axis, name in zip(line, names, strict=False):
            axis.set_title(f"{data}: {_title(name)}", fontsize=9, color=_INK)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.25)
            (_draw_curves if by_step else _draw_figures)(axis, outcome, data, name)
        for axis in line[len(names):]:
            axis.set_axis_off()
    figure.suptitle(config.title, fontsize=10, color=_INK)
    handles = [axes[0][0].plot([], [], color=_colour(i), linewidth=3)[0] for i in range(len(config.ways))]
    figure.legend(handles, list(config.ways), loc="outside lower center", ncols=min(4, len(config.ways)), fontsize=8,
                  frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, dpi=120, format="png"))


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _draw_figures(axis: Axes, outcome: Outcome, data: str, name: str) -> None:
    for number, way in enumerate(outcome.config.ways):
        values = outcome.values(way, data, name)
        axis.plot([number] * len(values), values, "o", color=_colour(number), markersize=5, alpha=0.6)
        if values:
            axis.hlines(mean_and_spread(values)[0], number - 0.3, number + 0.3, color=_colour(number), linewidth=2)
    axis.set(xlim=(-0.6, len(outcome.config.ways) - 0.4), xticks=[])
    _scale(axis, [value for way in outcome.config.ways for value in outcome.values(way, data, name)])


def _scale(axis: Axes, values: Sequence[float]) -> None:
    if values and max(values) > _FAR * min(values) > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(which="minor", labelsize=6)


def _draw_curves(axis: Axes, outcome: Outcome, data: str, name: str) -> None:
    """Thin: each seed; the axis ends where the middle half of all values has been three times over."""
    config = outcome.config
    everything: list[float] = []
    by_operations = config.equal is not None or config.budget is not None
    for number, way in enumerate(config.ways):
        for job in outcome.of(way, data):
            steps, values = job.curve(name)
            places = [outcome.cost(job, step) for step in steps] if by_operations else steps
            axis.plot(places, values, color=_colour(number), linewidth=0.9, alpha=0.8)
            everything += values
    finite = np.array([value for value in everything if np.isfinite(value)])
    if len(finite):
        low, quarter, three_quarters = np.quantile(finite, [0, 0.25, 0.75])
        high = min(finite.max(), three_quarters + 3 * (three_quarters - quarter) + 1e-9)
        margin = 0.05 * (high - low) + 1e-9
        axis.set(ylim=(low - margin, high + margin))
        if low > 0 and high > _FAR * low:
            axis.set_ylim(low / 1.05, high * 1.05)
        _scale(axis, [low, high])
    axis.set_xlabel("operations" if by_operations else "step", fontsize=7)


def draw_samples(path: Path, outcome: Outcome) -> None:
    """Draws to a PNG, for each of the data, the pictures of the first seed: a column a way, a row a number of steps."""
    config = outcome.config
    ways, rows = list(config.ways), [(data, steps) for data in config.data for steps in config.pictures]
    figure = Figure(figsize=(2.9 * len(ways), 3.0 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), len(ways), squeeze=False)
    for line, (data, steps) in zip(axes, rows, strict=True):
        for axis, way in zip(line, ways, strict=True):
            axis.set_axis_off()
            axis.set_title(f"{way}, {steps} step{'s' if steps > 1 else ''}", fontsize=9, color=_INK)
            job = outcome.of(way, data)[0]
            if job in outcome.summaries and (found := job.picture(steps)).exists():
                with Image.open(BytesIO(read_regular(found))) as picture:
                    axis.imshow(np.asarray(picture), cmap="gray")
    figure.suptitle(f"{config.title}: samples of seed {config.seeds[0]}", fontsize=10, color=_INK)
    write_atomically(path, lambda file: figure.savefig(file, dpi=120, format="png"))
