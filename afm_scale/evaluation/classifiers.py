"""The accuracy of a classifier's average, by time: while it trains, and as the last word of its run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import ConfigError, RunError
from ..core.place import Place
from ..core.random import Positions
from ..core.ranges import Count, Range, Seed
from ..core.types import Batch, Role
from ..data.order import PositionedSource
from ..data.source import DataSource
from ..data.table import AnySource, build_source
from ..models.encoding import build_encoder
from ..parallel.agreement import agreed
from ..sampling.subject import Subject
from .accuracy import AccuracyByTime, accuracy_by_time, draw_accuracy
from .measurement import Findings, Tools

_TILE = 128  # samples the network sees at once; always the same ones, so that rounding does not depend on the ranks


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """What is measured, and on what.

    `held_out` is a data source of samples that were not trained on, opened for the measurement alone; its global_batch
    counts samples read at a time and changes no result. Null: what the training data hold out themselves (digits do),
    otherwise samples of the training data.
    """

    # the first ones of the source; of the digits at most the 359 there are
    num_samples: Annotated[int, Range(1, 100_000_000)] = 10_000
    num_buckets: Annotated[int, Range(1, 100)] = 10  # equal parts of the time, each measured by itself
    held_out: AnySource | None = None  # samples that were not trained on
    seed: Seed = 0  # of the times, the noise and the order of `held_out`
    measures: ClassVar[Role] = Role.CLASSIFIER
    goes_on_in_the_stream: ClassVar[bool] = True  # of training data, which only a run that is over may do

    def resolved(self) -> AccuracyConfig:
        """The same with `held_out` resolved."""
        return self if self.held_out is None else replace(self, held_out=self.held_out.resolved())

    def check(self, data: AnySource, setting: str) -> None:
        """Raises ConfigError if the accuracy of a classifier of `data` cannot be measured on the samples chosen."""
        check_samples(self, data, setting)

    def check_ready(self, check_extractor: Callable[[Any], None], *, may_be_open: bool = False) -> None:
        if self.held_out is not None:
            self.held_out.fingerprint()


@dataclass(frozen=True, kw_only=True)
class ClassifierEvaluationConfig(AccuracyConfig):
    """The measurement while a classifier trains. It cannot take from a stream of training data."""

    goes_on_in_the_stream: ClassVar[bool] = False
    kind: Literal["classifier"] = "classifier"
    every_steps: Count  # between two measurements
    num_samples: Annotated[int, Range(1, 100_000_000)] = 2000  # the first ones of the source


class ClassifierEvaluation:
    """Measures the average of a run that is going on. Collective: every rank must call it."""

    def __init__(self, config: AccuracyConfig, tools: Tools | None = None) -> None:
        self._config = config

    def __call__(self, subject: Subject) -> dict[str, float]:
        """accuracy (t uniform in [0, 1)), accuracy_t0 (clean samples), and accuracy_t0.0-0.1, ... of each bucket."""
        return self.measure(subject)[1].figures()

    def measure(self, subject: Subject) -> tuple[str, AccuracyByTime]:
        """(what the samples were, the accuracy). Raises what one rank met in reading them."""
        with _samples(self._config, subject) as samples:
            found = accuracy_by_time(
                subject.network, samples.batches, num_samples=samples.count,
                num_buckets=self._config.num_buckets, seed=self._config.seed,
                sum_over_ranks=partial(_sum, place=subject.place),
            )
        return samples.name, found


def _sum(value: Tensor, *, place: Place) -> Tensor:
    if not place.leads_group:
        value.zero_()  # the ranks that saw the same samples have counted the same: one of them tells
    if place.world_size > 1:
        dist.all_reduce(value)
    return value


@dataclass(frozen=True, kw_only=True)
class ClassifierReport(AccuracyConfig):
    """Measures the accuracy by time and draws it."""

    kind: Literal["classifier"] = "classifier"

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`."""
        name, found = ClassifierEvaluation(self).measure(subject)
        if subject.place.rank == 0:
            title = f"accuracy on {found.num_samples} {name}"
            draw_accuracy(picture, found, num_classes=subject.num_classes, title=title)
        return {"samples": f"{found.num_samples} {name}", **found.figures()}


def check_samples(config: AccuracyConfig, data: AnySource, setting: str) -> None:
    """Raises ConfigError if the accuracy of a classifier of `data` cannot be measured on the samples chosen."""
    held_out = config.held_out
    if held_out is not None:
        for name in ("shape", "num_classes"):
            found, wanted = getattr(held_out, name), getattr(data, name)
            if found != wanted:
                raise ConfigError(
                    f"{setting}.held_out.{name} {found} is not data.{name} {wanted}; "
                    f"describe held-out samples of the same kind under {setting}.held_out"
                )
    elif not config.goes_on_in_the_stream and not data.positioned:
        raise ConfigError(
            f"{setting}.held_out is null, but data.kind {data.kind!r} is a stream that only training may take from; "
            f"describe held-out samples under {setting}.held_out"
        )


class _Samples(NamedTuple):
    name: str
    count: int
    batches: Iterator[tuple[Positions, Batch]]  # as `accuracy_by_time` wants them, in the networks' precision


@contextmanager
def _samples(config: AccuracyConfig, subject: Subject) -> Iterator[_Samples]:
    place, dtype, source = subject.place, subject.dtype, subject.source
    assert source is not None, "accuracy is measured while a run is going on: it needs the data"
    if config.held_out is not None:
        with closing(_open(config.held_out, config.seed, place)) as opened:
            turns = _in_turns(opened, config.num_samples, place, dtype)
            yield _Samples("held-out samples", config.num_samples, turns)
    elif isinstance(source, PositionedSource) and (held_out := source.held_out()) is not None:
        count = min(config.num_samples, len(held_out.batch.y))
        tiles = _in_tiles(lambda positions: _wrapped(held_out.batch, positions), count, place, dtype)
        yield _Samples(held_out.name, count, tiles)
    elif isinstance(source, PositionedSource):
        tiles = _in_tiles(source.at, config.num_samples, place, dtype)
        yield _Samples("training samples", config.num_samples, tiles)
    else:  # goes on in the stream: the run is over
        turns = _in_turns(source, config.num_samples, place, dtype)
        yield _Samples("training samples", config.num_samples, turns)


def _open(config: AnySource, seed: int, place: Place) -> DataSource:
    """A source of its own, from its beginning. Raises, on every rank, the error that one of them met."""
    batch = -(-max(config.global_batch, 1) // place.num_data_ranks) * place.num_data_ranks
    source = None
    try:
        with agreed():
            source = build_source(
                replace(config, global_batch=batch), seed=seed, rank=place.data_rank,
                world_size=place.num_data_ranks, device=place.device, encoder_of=build_encoder,
            )
    except RunError:
        if source is not None:
            source.close()
        raise
    assert source is not None
    return source


def _in_turns(
    source: DataSource, count: int, place: Place, dtype: torch.dtype
) -> Iterator[tuple[Positions, Batch]]:
    """This rank's samples of the source's next turns until `count` have come, numbered from 0."""
    batches, first = iter(source), 0
    while first < count:
        with agreed():
            batch = next(batches)
        positions = Positions(first + place.data_rank, place.num_data_ranks, len(batch.y))
        yield positions, Batch(batch.x.to(dtype), batch.y)
        first += place.num_data_ranks * len(batch.y)


def _in_tiles(
    at: Callable[[Positions], Batch], count: int, place: Place, dtype: torch.dtype
) -> Iterator[tuple[Positions, Batch]]:
    """Tiles of consecutive samples, dealt to the ranks in turn; every rank gets equally many."""
    num_ranks = place.num_data_ranks  # those that share the classifier's work are given the same ones
    for first in range(place.data_rank, -(-count // (_TILE * num_ranks)) * num_ranks, num_ranks):
        positions = Positions(first * _TILE, 1, _TILE)
        batch = at(positions)
        yield positions, Batch(batch.x.to(place.device, dtype), batch.y.to(place.device))


def _wrapped(samples: Batch, positions: Positions) -> Batch:
    """The samples at positions; after the last one comes the first again."""
    indices = [(positions.offset + number * positions.stride) % len(samples.y) for number in range(positions.count)]
    return Batch(samples.x[indices], samples.y[indices])
