"""What is compared: ways of training x data x seeds, and what each run is asked for afterwards.

    title: four phases against one
    folder: runs/compare/phases         # a run lies in FOLDER/WAY/DATA/seed_S
    seeds: [0, 1, 2]
    data: {digits: [], mnist: ["data.file=FILE.npz"]}               # overrides for all runs on them
    ways:
      one phase: {recipe: "{data}_afm", overrides: ["loop.steps=4000"]}
      four phases: {recipe: "{data}_afm_phases"}
    equal: one phase                                                # all take the operations of this way: see `stretch`
    figures: [class_accuracy, frechet_distance, frechet_distance@4] # of the run's report; @4: of samples in four steps
    curves: [frechet_distance, recall]                              # of its evaluations, by step
    pictures: [1, 4]                                                # samples in so many steps, side by side
    events: {reloads: {kind: reload}}                               # how many lines of events.jsonl have these values
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from ..core.errors import ConfigError, DataError, UserError
from ..core.files import read_regular
from ..core.ranges import Count, Range, Seed, Text
from ..core.run_folder import RunFolder
from ..core.schedules import Constant, schedules_in, updates_in
from ..core.strict_json import parse_json
from ..core.typed import to_mapping
from ..run.config import RunConfig
from ..run.forecast.counting import mean_step_flops
from ..run.load import load
from ..run.phases import configs_of_phases, phases_of

Name = Annotated[str, Text(60, r"[\w .,=+x-]*[\w]", "letters, digits, spaces and . , = + - _")]
Figure = Annotated[str, Text(60, r"\w+(@[1-9]\d*)?", "a figure's name, or NAME@K for samples in K network evaluations")]
EQUAL = 0.02  # ways whose operations differ by no more than this share are at equal compute


@dataclass(frozen=True, kw_only=True)
class WayConfig:
    """A recipe, in whose name {data} stands for the name of the data, and what is laid over it."""

    recipe: str
    overrides: tuple[str, ...] = ()  # they win over those of the data


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Ways x data x seeds, all trained by the `train` command."""

    title: str
    folder: Path  # of the runs; relative to where the command is called
    ways: Mapping[Name, WayConfig]
    seeds: tuple[Seed, ...] = (0, 1, 2)  # loop.seed of the runs of a way
    data: Mapping[Name, tuple[str, ...]]  # overrides of all runs on them, by a name of one's choice
    figures: tuple[Figure, ...]  # of the report; a table's columns. NAME@K: of samples in K network evaluations
    curves: tuple[str, ...] = ()  # figures of hooks.evaluation, drawn by step, or by operations that are equal
    pictures: tuple[Count, ...] = ()  # network evaluations: samples of every way in so many, in samples.png
    # a way: the others get as many updates as make their operations equal to its own; null: as their recipes say
    equal: Name | None = None
    budget: Annotated[float, Range(above=0)] | None = None  # the operations that every run gets, in place of `equal`
    # of lines of events.jsonl: a column's name, and the values that a line must have to be counted
    events: Mapping[Name, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        for name, found in (("ways", self.ways), ("data", self.data), ("seeds", self.seeds), ("figures", self.figures)):
            if not found:
                raise ConfigError(f"a comparison needs {name}, found none")
        if self.equal is not None and self.equal not in self.ways:
            raise ConfigError(f"equal: found {self.equal!r}, wanted one of the ways {', '.join(self.ways)}, or null")
        if self.equal is not None and self.budget is not None:
            raise ConfigError("equal and budget both say how much a run may cost; leave one of them out")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {list(self.seeds)}: one comes twice")


@dataclass(frozen=True)
class Job:
    """One run of the comparison."""

    way: str
    data: str
    seed: int
    folder: Path
    recipe: str
    overrides: Sequence[str]

    @cached_property
    def config(self) -> RunConfig:
        """Raises ConfigError, which begins with the way."""
        try:
            return load(RunConfig, self.recipe, self.overrides).resolved()
        except ConfigError as error:
            raise ConfigError(f"way {self.way!r} on {self.data!r}: {error}") from None

    @property
    def name(self) -> str:
        return f"{self.way} / {self.data} / seed {self.seed}"

    def _trained_by(self) -> RunConfig | None:
        """The run's own recipe; what it does not say, being older than a setting, is as that setting's default."""
        try:
            return load(RunConfig, RunFolder(self.folder).config).resolved()
        except ConfigError:
            return None

    def summary(self) -> Mapping[str, Any] | None:
        """The last word of the run; None while it has not ended. Raises UserError if it was trained otherwise."""
        content = _content(RunFolder(self.folder).summary)
        if content is None:
            return None
        if self._trained_by() != self.config:
            raise UserError(
                f"{self.folder} holds a finished run of other settings than {self.name} has now; move it away, or "
                "choose another folder"
            )
        try:
            return parse_json(content)
        except ValueError as error:
            raise DataError(f"{self.folder}: summary.json: {error}; remove it, and the run is ended anew") from None

    def figure(self, name: str, summary: Mapping[str, Any]) -> float | None:
        """A figure of its report, NAME or NAME@K for samples in K steps; None: it has none of that name."""
        name, _, steps = name.partition("@")
        found = summary.get("quality", {})
        if steps and int(steps) != self.config.sampling.num_steps:
            found = summary.get("quality_by_num_steps", {}).get(steps, {})
        return found.get(name)

    def picture(self, num_steps: int) -> Path:
        """Where samples in so many steps are drawn, if they are."""
        folder = RunFolder(self.folder)
        is_own = num_steps == self.config.sampling.num_steps
        return folder.final_picture if is_own else folder.final_picture_in(num_steps)

    def counted(self, wanted: Mapping[str, Any]) -> int:
        """How many lines of its log of events have these values."""
        return sum(all(line.get(name) == value for name, value in wanted.items()) for line in self._events())

    def curve(self, figure: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a figure of its evaluations; where the run went back, what came last."""
        found = {
            line["step"]: line["figures"][figure] for line in self._events()
            if line["kind"] == "evaluation" and figure in line["figures"]
        }
        return sorted(found), [found[step] for step in sorted(found)]

    def _events(self) -> Iterator[Mapping[str, Any]]:
        if RunFolder(self.folder).events.exists():
            yield from RunFolder(self.folder).read_events()


def _content(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None


def jobs_of(config: ComparisonConfig) -> list[Job]:
    """All runs: the first seed of every way first, so that a comparison half done compares."""
    stretches = {
        (way, data): _stretch_of(config, way, data, wanted)
        for data in config.data for wanted in [_wanted(config, data)] for way in config.ways
    }
    return [
        _job(config, way, data, seed, stretches[way, data])
        for seed in config.seeds for data in config.data for way in config.ways
    ]


def _job(config: ComparisonConfig, way: str, data: str, seed: int, more: Sequence[str] = ()) -> Job:
    chosen = config.ways[way]
    folder = config.folder / _folder(way) / _folder(data) / f"seed_{seed}"
    overrides = (*config.data[data], *chosen.overrides, *more, f"loop.seed={seed}", f"run.folder={folder}")
    return Job(way, data, seed, folder, chosen.recipe.replace("{data}", data), overrides)


def _wanted(config: ComparisonConfig, data: str) -> float | None:
    """The operations that every run on these data gets; None: what its recipe takes."""
    if config.equal is None:
        return config.budget
    return operations(_job(config, config.equal, data, config.seeds[0]).config)


def _stretch_of(config: ComparisonConfig, way: str, data: str, wanted: float | None) -> list[str]:
    if wanted is None or way == config.equal:
        return []
    own = _job(config, way, data, config.seeds[0]).config
    if own.pilot is not None and own.pilot.phases:
        raise ConfigError(f"way {way!r}: phases cannot be stretched; leave equal and budget out, and say in each how "
                          "long it is")
    return stretch(own, wanted / operations(own))


def stretch(config: RunConfig, factor: float) -> list[str]:
    """Overrides that give a recipe `factor` times its updates, and spread over them what is counted in updates.

    These are its schedules, numbers marked `InUpdates` and the interval of its evaluations. The average forgets as fast
    as before, by updates.
    """
    found = [f"loop.steps={max(round(factor * config.loop.steps), 1)}"]
    found += [f"{'.'.join(keys)}={round(factor * number)}" for keys, number in updates_in(config)]
    if (evaluation := config.hooks.evaluation) is not None:
        found.append(f"hooks.evaluation.every_steps={max(round(factor * evaluation.every_steps), 1)}")
    return found + [
        f"{'.'.join(keys)}={json.dumps(to_mapping(schedule.stretched(factor)))}"
        for keys, schedule in schedules_in(config) if not isinstance(schedule, Constant)
    ]


def _folder(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def operations(config: RunConfig, until: int | None = None) -> float:
    """Floating-point operations of all updates of a run: counted for a step by its networks, times batch and steps.

    `until`: of its first updates alone.

    Each phase of a pilot counts with its own objective, for as long as it may last, and an objective that asks more or
    less in the course of a run with what it asks when. What is measured on the way is not training, and not counted.
    """
    total, left = 0.0, config.loop.steps
    for phase, during in zip(phases_of(config), configs_of_phases(config), strict=True):
        steps = left if phase.until.updates is None else min(left, phase.until.updates)
        begin = config.loop.steps - left
        counted = steps if until is None else min(steps, until - begin)
        if counted > 0:
            total += mean_step_flops(during, begin, begin + counted) * config.data.global_batch * counted
        left -= steps
    return total


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation of two or more."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
