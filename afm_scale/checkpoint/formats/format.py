"""What a format of checkpoints owes: to be recognised, to be opened as a `Source`, and to be written from one.

Every source speaks this program's own names (`checkpoint/names.py`), whatever stands in the file: a conversion is
`source` of one format and `write` of another. A file of one network holds `average.NAME` (a generator, a classifier:
the weights that are published) or `discriminator.NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from ...core.errors import CheckpointError
from ..card import Card
from ..manifest import TensorEntry


class Lazy(NamedTuple):
    """A tensor that is read when it is asked for: whole, on the CPU, contiguous; each time anew."""

    entry: TensorEntry  # shape and dtype, known without reading it
    read: Callable[[], Tensor]

    def changed(self, change: Callable[[Tensor], Tensor], entry: TensorEntry | None = None) -> Lazy:
        """What `change` makes of it; `entry`: of the result, if it is another shape or dtype."""
        return Lazy(entry or self.entry, lambda: change(self.read()).contiguous())

    @staticmethod
    def of(tensor: Tensor) -> Lazy:
        """One that is in memory already."""
        return Lazy(TensorEntry.of(tensor), lambda: tensor)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a person says of a file that cannot say it itself; None: not said."""

    heads: int | None = None  # of attention: no tensor's shape shows them
    repetitions: int | None = None  # how often a deep generator applies its blocks: no tensor shows it
    num_steps: int | None = None  # network evaluations of one sample
    prediction: Literal["x", "v"] | None = None  # what the generator's output means
    learn_sigma: bool | None = None  # whether half of the output channels are a variance


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a format that has a choice is to be written."""

    ranks: int = 1  # files side by side, of formats that cut tensors among ranks
    stage: int = 2  # of ZeRO
    shard_bytes: int = 5 * 10**9  # the largest file of a format that can be cut into several


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a checkpoint beside its tensors."""

    card: Card | None = None  # None: what is in the file does not say enough, see `no_card`
    no_card: str = "it does not say what networks its weights are of"  # found and what to do, where there is no card
    step: int = 0  # completed updates of the learner
    scalars: Mapping[str, Any] | None = None  # step, images_seen and the data's position; None: no run goes on from it
    description: Mapping[str, Any] = field(default_factory=dict)  # where it comes from; for people
    world_size: int = 1  # ranks that wrote it
    notes: tuple[str, ...] = ()  # what the user ought to know of how the file was read


@dataclass(frozen=True)
class Source:
    """A checkpoint that is open: all that it holds, under this program's names. A context manager.

    Nothing is read of the tensors but what is asked for, one at a time.
    """

    path: Path
    tensors: Mapping[str, Lazy]  # by native name
    about: About
    close: Callable[[], None] = lambda: None

    @property
    def entries(self) -> dict[str, TensorEntry]:
        return {name: lazy.entry for name, lazy in self.tensors.items()}

    @property
    def num_bytes(self) -> int:
        return sum(lazy.entry.num_bytes for lazy in self.tensors.values())

    def read(self, name: str) -> Tensor:
        return self.tensors[name].read()

    def card(self) -> Card:
        """Raises CheckpointError where it is not known."""
        if self.about.card is None:
            raise CheckpointError(f"{self.path}: {self.about.no_card}")
        return self.about.card

    def with_notes(self, *notes: str) -> Source:
        return replace(self, about=replace(self.about, notes=(*self.about.notes, *notes)))

    def with_tensors(self, tensors: Mapping[str, Lazy]) -> Source:
        return replace(self, tensors=tensors)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Format(Protocol):
    """A way to keep a checkpoint on a disk; the frozen object in `table.py`."""

    name: str

    def recognises(self, path: Path) -> bool:
        """Whether this is such a checkpoint, by what can be seen without reading tensors. Raises nothing."""
        ...

    def source(self, path: Path, told: Told) -> Source:
        """Raises CheckpointError, in words that name the file, for anything that is not whole and of this format."""
        ...

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        """Writes all of the source's tensors to `out`, which is complete or absent afterwards, one after another.

        Raises CheckpointError, before it writes, for what the format cannot hold, and UserError for a full disk.
        """
        ...
