"""Numbers that depend on the step: learning rates, loss weights, probabilities.

A step is one update of the generator, or of the classifier that is trained. In YAML a schedule is a plain number, or a
mapping with a `kind`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from .errors import ConfigError
from .ranges import FINITE, MANY, Range


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same value at every step. In YAML: the bare number."""

    shorthand: ClassVar[str] = "value"
    kind: Literal["constant"] = "constant"
    value: Annotated[float, FINITE]  # at every step

    def levels(self) -> dict[str, float]:
        return {"value": self.value}

    def from_step(self, first: int) -> Constant:
        """The same schedule counted from step `first`."""
        return self

    def stretched(self, factor: float) -> Constant:
        """The same curve over `factor` times the steps."""
        return self

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from `start` to `end` over `steps` generator updates, then `end`.

    The published AFM code counts half-steps, k = 2 step + 1 for the generator's, over N = 2 `steps` of them:
    end + (start - end)(1 + cos(pi k / (N - 1))) / 2. This is the same curve; hence the halves, and `steps` may be
    fractional where N is odd.
    """

    kind: Literal["cosine"] = "cosine"
    start: Annotated[float, FINITE]  # value before the first update
    end: Annotated[float, FINITE]  # value from `steps` on
    steps: Annotated[float, Range(above=0)]  # updates of the generator from start to end
    begin: Annotated[int, Range(0, MANY)] = 0  # the update it begins at; `start` before it

    def levels(self) -> dict[str, float]:
        return {"start": self.start, "end": self.end}

    def from_step(self, first: int) -> Cosine:
        return replace(self, begin=self.begin + first)

    def stretched(self, factor: float) -> Cosine:
        return replace(self, steps=factor * self.steps, begin=round(factor * self.begin))

    def __call__(self, step: int) -> float:
        step -= self.begin
        if step < 0:
            return self.start
        if step + 0.5 >= self.steps - 0.5:
            return self.end
        fraction = (step + 0.5) / (self.steps - 0.5)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * fraction)) / 2


@dataclass(frozen=True, kw_only=True)
class Piecewise:
    """Straight lines between points (step, value), constant before the first and after the last.

    Two points at one step are a jump: the later one holds from that step on.
    """

    kind: Literal["piecewise"] = "piecewise"
    points: tuple[tuple[Annotated[int, Range(0)], Annotated[float, FINITE]], ...]  # (step, value), in order of step

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.points]
        if not steps or steps != sorted(steps):
            raise ConfigError(f"a piecewise schedule needs points in order of step, found steps {steps}")

    def levels(self) -> dict[str, float]:
        return {f"points.[{i}].[1]": value for i, (_, value) in enumerate(self.points)}

    def from_step(self, first: int) -> Piecewise:
        return replace(self, points=tuple((step + first, value) for step, value in self.points))

    def stretched(self, factor: float) -> Piecewise:
        return replace(self, points=tuple((round(factor * step), value) for step, value in self.points))

    def __call__(self, step: int) -> float:
        before = [point for point in self.points if point[0] <= step]
        after = [point for point in self.points if point[0] > step]
        if not before:
            return self.points[0][1]
        if not after:
            return before[-1][1]
        (left, low), (right, high) = before[-1], after[0]
        return low + (high - low) * (step - left) / (right - left)


Schedule = Constant | Cosine | Piecewise


def counted_from(config: Any, first: int) -> Any:
    """A configuration whose schedules, wherever they stand in it, count from step `first`."""
    if isinstance(config, Schedule):
        return config.from_step(first)
    if is_dataclass(config):
        return replace(config, **{
            field.name: counted_from(getattr(config, field.name), first) for field in fields(config) if field.init
        })
    return config


@dataclass(frozen=True)
class InUpdates:
    """In the type hint of a whole number: it counts updates of a run, and belongs to its length as a schedule does."""


def updates_in(config: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every number of a configuration that is marked `InUpdates`, with the keys by which it is found."""
    if is_dataclass(config):
        hints = get_type_hints(type(config), include_extras=True)
        for field in fields(config):
            value, path = getattr(config, field.name), (*keys, field.name)
            if any(isinstance(mark, InUpdates) for mark in getattr(hints[field.name], "__metadata__", ())):
                yield path, value
            yield from updates_in(value, path)


def schedules_in(config: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Schedule]]:
    """Every schedule of a configuration, with the keys by which it is found."""
    if isinstance(config, Schedule):
        yield keys, config
    elif is_dataclass(config):
        for field in fields(config):
            yield from schedules_in(getattr(config, field.name), (*keys, field.name))


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """average <- decay average + (1 - decay) weights, once per update of the learner, in the weights' precision."""

    decay: Annotated[float, Range(0, 1)]  # 0.9999 as published; 0 copies the weights, 1 leaves it where it began
    warm_up: bool = False  # use min(decay, (1 + k) / (10 + k)) at update k = 0, 1, ...: forgets the start sooner

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay
