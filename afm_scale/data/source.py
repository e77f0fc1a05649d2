"""The protocol of a data source: an endless stream with a position.

The stream is one sequence of samples, a pure function of the seed: stream position n is sample n mod N of epoch n // N.
One `next()` takes the following `global_batch` positions; rank r of W gets those with (offset in the batch) mod W = r,
in order, whatever W is. So the position is one number, and it survives a change of W.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, TypeVar

from ..core.conditions import Conditions, ConditionShape
from ..core.ranges import Range
from ..core.types import Batch

Config = TypeVar("Config", bound="SourceConfig")


class Needs(NamedTuple):
    """An optional package without which a source cannot be built."""

    package: str  # as it is imported
    extra: str  # of afm_scale, which installs it


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a stream is, as checkpoints keep it: what `DataSource.state_dict` returns and `load_state_dict` takes."""

    consumed: Annotated[int, Range(0, 2**62)]  # samples handed out so far over all ranks


class Encoding(NamedTuple):
    """How pixels became the latents that a source draws."""

    vae: str  # a folder of the autoencoder, or its name
    scale: float  # a training latent is scale * (mean + deviation * normal)
    shift: float = 0.0  # what was taken off the encoder's mean


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What every source's configuration says, so that nobody need know which it is.

    Each also has `kind`, `shape` (C, H, W) and `num_classes`, the latter two as its source has them. Of data with
    prompts there are as many classes as `prompts` that samples are drawn for; those of training may be any others.
    """

    needs: ClassVar[Needs | None] = None
    draws_latents: ClassVar[bool] = False  # otherwise its samples are pixels, or what is measured as it is
    has_images: ClassVar[bool] = True  # otherwise its batches have prompts alone, and x is NaN
    encodes: ClassVar[bool] = False  # its source is handed `encode`, an encoder (data/images_to_latents.py)
    positioned: ClassVar[bool] = False  # its source is an `order.PositionedSource`: any sample can be had at any time

    # samples per turn (one update of one player), over all ranks and microbatches
    global_batch: Annotated[int, Range(1, 10_000_000)]

    def resolved(self) -> SourceConfig:
        """The same with what was left out, and stands with the data themselves. Raises DataError if it cannot be read.

        `shape` and `num_classes` may be asked of a resolved configuration alone.
        """
        return self

    @classmethod
    def decoding(cls, *, on_gpu: bool) -> str:
        """What makes samples of the stored bytes on a machine with or without a GPU, in a few words for `doctor`."""
        return "embedded"

    def fingerprint(self) -> Mapping[str, str]:
        """Which data these are, by what tells them from others: SHA-256 in digits, by a name of what is summed.

        Two configurations with the same fingerprint draw the same samples with the same labels; where they lie, and
        settings such as the batch, are not in it. Empty if the data are part of the program. Reads a small file, or,
        of a toy's file, all of it. Raises DataError if it cannot be read.
        """
        return {}

    @property
    def starts_processes(self) -> bool:
        """Whether its source has `multiprocessing` start some, which this machine must be able to."""
        return False

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of all sizes of its samples; `shape`, in which samples are drawn, is the first. As of `shape`."""
        return (self.shape,)

    @property
    def prompt_shape(self) -> ConditionShape | None:
        """Of the prompts that its batches have as `conditions`; None if they have labels alone. As of `shape`."""
        return None

    def prompts(self) -> Conditions | None:
        """The prompts that pictures, reports and evaluations draw samples for; None where `prompt_shape` is.

        Row y is the prompt of class y < num_classes, and the last one, which comes after them, is the empty prompt.
        On the CPU, as they are stored. Whoever draws from a checkpoint asks its configuration, not a source. Raises
        DataError if they cannot be read.
        """
        return None

    @property
    def encoding(self) -> Encoding | None:
        """How its latents were made; None if it draws none, or if no autoencoder made them."""
        return None


def filled(config: Config, **found: Any) -> Config:
    """The configuration with these values in the place of those that were left out (None)."""
    return replace(config, **{name: value for name, value in found.items() if getattr(config, name) is None})


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that could not be read, and what its place in the batch was filled with (`data.on_error: skip`)."""

    place: str  # shard and key
    reason: str
    substitute: str  # shard and key


class DataSource(Protocol):
    shape: tuple[int, int, int]  # (C, H, W) of one sample
    num_classes: int

    def __iter__(self) -> Iterator[Batch]:
        """Endless: this rank's [global_batch / world_size] samples of one turn after another, on the device.

        Of data with prompts a batch has `conditions`: as many rows as its samples have prompts, then the empty one.
        """
        ...

    def state_dict(self) -> Mapping[str, int]:
        """The `Position`, as plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...

    def take_skipped(self) -> Sequence[Skipped]:
        """What this rank had to skip since the last call, in order."""
        ...

    def close(self) -> None: ...
