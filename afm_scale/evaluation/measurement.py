"""What the configurations of reports and evaluations have in common, and what an evaluation is built with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ..core.errors import ConfigError
from ..core.place import Place
from ..core.types import Role
from ..data.source import SourceConfig
from ..sampling.decoding import Decoder
from ..sampling.subject import Subject
from .features.extractor import Extractor

Findings = Mapping[str, object]
"""What a report found, by name: JSON values, in the order of the table that is printed."""

Evaluation = Callable[[Subject], Mapping[str, float]]
"""Collective: figures of a run's average while it trains, the same on every rank; leaves the stream of data alone."""


class Measurement(Protocol):
    """The configuration of a report or an evaluation: a frozen dataclass with a `kind`."""

    measures: ClassVar[Role]  # whose average it is of

    def resolved(self) -> Measurement:
        """The same with what a packed data set says of itself (`SourceConfig.resolved`)."""
        ...

    def check(self, data: SourceConfig, setting: str) -> None:
        """Raises ConfigError, which begins with `setting`, if what is trained on these data cannot be measured so."""
        ...

    def check_ready(self, check_extractor: Callable[[Any], None], *, may_be_open: bool = False) -> None:
        """Raises UserError if what it will read is not here. `check_extractor` tells it of a configuration of features.

        Before a run is built: nothing is read but descriptions. `may_be_open`: what a recipe leaves to its user need
        not be named yet.
        """
        ...


class Report(Measurement, Protocol):
    """The last word of a run, chosen by `report` in its recipe."""

    def __call__(self, subject: Subject, picture: Path) -> Findings:
        """Collective: every rank must call it, and rank 0 draws `picture`, a PNG."""
        ...


class Figures(Measurement, Protocol):
    """An evaluation that is its configuration, as a report is: it draws from the average and needs no tools."""

    @property
    def figures(self) -> Evaluation: ...


class OfGenerator:
    """A base for what measures samples: it is of the generator, and any data will do unless `check` says otherwise."""

    measures: ClassVar[Role] = Role.GENERATOR

    def resolved(self) -> Any:
        return self

    def check(self, data: SourceConfig, setting: str) -> None:
        """Any data will do."""

    def check_ready(self, check_extractor: Callable[[Any], None], *, may_be_open: bool = False) -> None:
        """It reads nothing."""


def check_shape(data: SourceConfig, shape: tuple[int, int, int], num_classes: int, setting: str, kind: str) -> None:
    """Raises ConfigError if a report is about samples of another shape or other classes than these data have."""
    for name, wanted in (("shape", shape), ("num_classes", num_classes)):
        found = getattr(data, name)
        if found != wanted:
            raise ConfigError(
                f"{setting}.kind {kind!r} measures samples of {name} {wanted}, but data of kind {data.kind!r} have "
                f"{found}; set another {setting}, or {setting}=null"
            )


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What an evaluation may be built with, by those who know checkpoints and autoencoders."""

    place: Place
    shape: tuple[int, int, int]  # [C, H, W] of a sample
    extractor_of: Callable[[Any, torch.device], Extractor]  # from the configuration of features
    decoder_of: Callable[[str | None], Decoder | None]  # by the autoencoder that is wanted instead of the data's
