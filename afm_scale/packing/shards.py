"""Packs originals into checked shards: python tools/make_shards.py SOURCE OUT [...]

One shuffle, a pure function of the seed and the listing of the source, lays out all shards; each is made by one of
several processes. What is killed goes on when the same command is run again, and ends with the same bytes.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from ..core.errors import ConfigError, DataError
from ..core.packages import require
from ..core.random import permutation
from ..data.description import DatasetDescription
from ..data.transforms import ImageError
from .archives import compression, list_tar, list_zip, spool
from .originals import Listing, Original, Reader, list_folder
from .recode import Recode
from .workers import make_all, one_packing_alone
from .writer import Packing, refuse_other_contents, scratch_folder

DEFAULT_SHARD_MB = 256
_SAMPLED = 64  # images that are encoded to learn how large they become


@dataclass(frozen=True, kw_only=True)
class MakeShardsConfig:
    source: Path
    out: Path
    recode: Recode
    num_shards: int | None = None
    shard_mb: float | None = None  # 10**6 bytes
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_shards is not None and self.shard_mb is not None:
            raise ConfigError("--shards and --shard-mb were both given; one of them decides: leave the other out")
        for name, value in (("--shards", self.num_shards), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; wanted at least 1")
        if self.shard_mb is not None and not (0 < self.shard_mb < math.inf):
            raise ConfigError(f"--shard-mb is {self.shard_mb}; wanted more than 0")


def make_shards(config: MakeShardsConfig) -> DatasetDescription:
    """Raises UserError for a source, a folder or settings that cannot be used; says what it does on stderr."""
    source, out = config.source, config.out
    if not source.exists():
        raise DataError(f"{source} is not there; wanted a folder, a tar, a zip or a parquet file of images")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out} lies inside the source {source}; choose a folder outside of it")
    refuse_other_contents(out)
    with one_packing_alone(out):
        listed = list_source(source, scratch_folder(out))
        if not listed.originals:
            why = "; ".join(f"{one.name}: {one.reason}" for one in listed.refused[:3]) or "it is empty"
            raise DataError(f"{source} holds no images in class folders ({why}); wanted SOURCE/CLASS/IMAGE.jpg")
        order = [listed.originals[number] for number in permutation(len(listed.originals), "shards", config.seed)]
        num_shards = _num_shards(config, order, listed.reader)
        packing = Packing(out, _settings(config, listed, num_shards), config.recode.content)
        done = packing.begin()
        if done is None:
            make_all(packing, order, num_shards, listed.reader, config.recode, num_workers=config.workers)
            done = packing.finish(num_shards, listed.class_names, listed.refused)
        return done


def list_source(source: Path, scratch: Path) -> Listing:
    """Finds out what the source is by looking into it. Compressed tars and parquet files are copied into `scratch`."""
    parquet = sorted(source.glob("*.parquet")) if source.is_dir() else [source] * (source.suffix == ".parquet")
    if parquet:
        require("pyarrow", f"the parquet file {parquet[0].name}", "parquet")
        from .parquet import list_parquet

        return list_parquet(parquet, scratch)
    if source.is_dir():
        return list_folder(source)
    if not source.is_file():
        raise DataError(f"{source} is neither a file nor a folder; wanted a folder, a tar, a zip or a parquet file")
    opener = compression(source)
    if opener is not None:
        return list_tar(spool(source, opener, scratch))
    return list_zip(source) if zipfile.is_zipfile(source) else list_tar(source)


def _num_shards(config: MakeShardsConfig, order: Sequence[Original], reader: Reader) -> int:
    if config.num_shards is not None:
        if config.num_shards > len(order):
            raise ConfigError(f"--shards is {config.num_shards}, the source holds {len(order)} images; use fewer")
        return config.num_shards
    total = sum(one.size for one in order)
    if not config.recode.raw:
        sizes = []
        for original in order[:_SAMPLED]:
            try:
                sizes.append(len(config.recode(original.name, reader.read(original))[1]))
            except ImageError:
                continue
        total = sum(sizes) / len(sizes) * len(order) if sizes else total
    wanted = math.ceil(total / ((config.shard_mb or DEFAULT_SHARD_MB) * 1e6))
    return min(max(wanted, 1), len(order))


def _settings(config: MakeShardsConfig, listed: Listing, num_shards: int) -> dict[str, Any]:
    return {
        "source_sha256": listed.digest(),  # of names, sizes and classes
        "num_originals": len(listed.originals),
        "seed": config.seed,
        "num_shards": num_shards,
        "jpeg_quality": config.recode.jpeg_quality,
        "convert": config.recode.convert,
        "pillow": PIL.__version__,  # another one may decode and encode to other bytes
    }
