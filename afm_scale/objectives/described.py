"""What a recipe says beside its objective, as far as objectives have demands on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ..core.arithmetic import Precision


class GeneratorDescription(Protocol):
    """The configuration of a generator, as far as objectives have demands on it."""

    kind: str
    times: Literal["none", "source", "both", "gated"]  # which of (s, t) it is told; gated tells both
    negative_times: bool  # whether it is told their sign
    no_class_setting: str  # the setting that makes it take samples without a class

    @property
    def takes_no_class(self) -> bool: ...


class DiscriminatorDescription(Protocol):
    """The same of a discriminator."""

    kind: str
    target_time: bool  # whether it is told t

    def num_tokens(self, shape: tuple[int, int, int]) -> int:
        """Of a sample; 0 for one that sees it at once."""
        ...


class ClassifierDescription(Protocol):
    """The same of a classifier."""

    kind: str
    weights: Path | None  # of one that guides


class ModelDescription(Protocol):
    """The networks of a recipe: those that learn, and `classifier` and `flow` where they guide."""

    generator: GeneratorDescription | None
    discriminator: DiscriminatorDescription | None
    classifier: ClassifierDescription | None
    flow: Path | None


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a recipe says beside the objective, as far as objectives have demands on it."""

    model: ModelDescription  # has all networks of the objective's roles
    shape: tuple[int, int, int]  # of a sample
    num_classes: int
    global_batch: int
    microbatch: int  # samples that a loss is given at a time
    steps: int  # of the whole run
    precision: Precision  # parallel.precision
