"""Latents of several sizes with prompts: folders of `text_latents`, a bucket each (order: `buckets.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ..core.errors import ConfigError, DataError
from ..core.ranges import Range
from .buckets import BucketOrder, Buckets
from .description import read_content
from .text_latents import TextLatentsConfig, TextLatentsSource

_SEEDS_APART = 2**40  # of two buckets, so that no seed of a run is another's


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Latents of one size, and their prompts."""

    folder: Path  # of the encoded latents, with its dataset.json
    embeddings: Path  # of their prompts, as tools/encode_prompts.py has embedded them
    shape: Annotated[tuple[int, int, int], Range(1, 65_536)] | None = None  # C, H, W; null: as encoded


@dataclass(frozen=True, kw_only=True)
class TextBucketsConfig(TextLatentsConfig):
    """Latents of several sizes. `folder` and `embeddings` are of the size that samples are drawn in; `others` have the
    rest, encoded alike and by the same text encoder.
    """

    kind: Literal["text_buckets"] = "text_buckets"
    others: tuple[Bucket, ...]  # the other sizes

    def __post_init__(self) -> None:
        folders = [self.folder, *(bucket.folder for bucket in self.others)]
        twice = [str(folder) for folder in folders if folders.count(folder) > 1]
        if not self.others or twice:
            found = f"the folder {twice[0]} twice" if twice else "no other size"
            raise ConfigError(f"data.others: found {found}, wanted other sizes; for one use data.kind=text_latents")

    def resolved(self) -> TextBucketsConfig:
        chosen = super().resolved()
        return replace(chosen, others=tuple(map(_resolved, range(len(chosen.others)), chosen.others)))

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        return self.shape, *(bucket.shape for bucket in self.others)

    def fingerprint(self) -> Mapping[str, str]:
        parts = [part.fingerprint() for part in self.parts()]
        others = {f"{name} of bucket {number}": value for number, part in enumerate(parts) if number
                  for name, value in part.items()}
        return {**parts[0], **others}

    def parts(self) -> Iterator[TextLatentsConfig]:
        """A configuration of each bucket, of a resolved one."""
        shared = {field.name: getattr(self, field.name) for field in fields(TextLatentsConfig) if field.name != "kind"}
        yield TextLatentsConfig(**shared)
        shown = self.shown or self.embeddings
        for bucket in self.others:
            own = {field.name: getattr(bucket, field.name) for field in fields(Bucket)}
            yield TextLatentsConfig(**shared | own | {"shown": shown})


def _resolved(number: int, bucket: Bucket) -> Bucket:
    packed = read_content(bucket.folder, "latents").content.shape
    if bucket.shape not in (None, packed):
        raise DataError(
            f"{bucket.folder} holds latents of shape {list(packed)}, data.others[{number}].shape is "
            f"{list(bucket.shape)}; set it to {list(packed)}, or leave it out"
        )
    return replace(bucket, shape=packed)


def text_buckets(config: TextBucketsConfig, *, seed: int, rank: int, world_size: int, device: Any) -> Buckets:
    """The source of a resolved configuration. Raises ConfigError or DataError if a folder does not fit it."""
    parts = list(config.parts())
    sizes = {str(part.folder): read_content(part.folder, "latents").num_samples for part in parts}
    order = BucketOrder(sizes, global_batch=config.global_batch, seed=seed)
    place = {"rank": rank, "world_size": world_size}
    with ExitStack() as opened:
        sources = []
        for number, part in enumerate(parts):
            sources.append(TextLatentsSource(part, seed=seed + number * _SEEDS_APART, device=device, **place))
            opened.callback(sources[-1].close)
        opened.pop_all()
    return Buckets(sources, order, global_batch=config.global_batch, **place)
