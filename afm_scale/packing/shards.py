"""Packs originals into checked shards: python tools/make_shards.py SOURCE OUT [...]

One shuffle, a pure function of the seed and the listing of the source, lays out all shards; each is made by one of
several processes. What is killed goes on when the same command is run again, and ends with the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import PIL

from ..core.errors import ConfigError, DataError
from ..core.packages import require
from ..core.random import permutation
from ..data.description import DatasetDescription
from ..data.transforms import ImageError
from .archives import list_tar, list_zip
from .classes import Layout
from .naming import SIDE_FILES, is_image, why_ignored
from .originals import Files, Listing, Original, Reader, files_in, list_folder
from .recode import Recode
from .unpacking import kind_of, spool
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
    layout: Layout = field(default_factory=Layout)

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
        listed = list_source(source, scratch_folder(out), config.layout)
        if not listed.originals:
            why = "; ".join(f"{one.name}: {one.reason}" for one in listed.refused[:3]) or "it is empty"
            if config.layout.texts:
                raise DataError(f"{source} holds no images with texts ({why}); wanted NAME.txt beside NAME.jpg")
            raise DataError(f"{source} holds no images in class folders ({why}); wanted SOURCE/CLASS/IMAGE.jpg")
        order = [listed.originals[number] for number in permutation(len(listed.originals), "shards", config.seed)]
        num_shards = _num_shards(config, order, listed.reader)
        content = replace(config.recode.content, texts=config.layout.texts)
        packing = Packing(out, _settings(config, listed, num_shards), content)
        done = packing.begin()
        if done is None:
            make_all(packing, order, num_shards, listed.reader, config.recode, num_workers=config.workers)
            done = packing.finish(num_shards, listed.class_names, listed.refused, listed.notes)
        return done


def list_source(source: Path, scratch: Path, layout: Layout | None = None) -> Listing:
    """Finds out what the source is by looking into it. Compressed tars and parquet files are copied into `scratch`.

    Raises DataError if it is none of those that are read, or if it is not clear what of it is to be packed.
    """
    layout = layout or Layout()
    if source.is_dir():
        files = files_in(source)
        parquet = _parquet_of(source, files)
        if not parquet:
            return list_folder(source, files, layout)
        return _list_parquet([source / name for name in parquet], scratch, layout, files)
    if not source.is_file():
        raise DataError(f"{source} is neither a file nor a folder; wanted a folder, a tar, a zip or a parquet file")
    kind = kind_of(source)
    if kind == "parquet" or (kind == "tar" and source.suffix == ".parquet"):
        return _list_parquet([source], scratch, layout, None)
    if kind == "zip":
        return list_zip(source, layout)
    return list_tar(source if kind == "tar" else spool(source, kind, scratch), layout)


def _parquet_of(source: Path, files: Files) -> list[str]:
    """The names of the parquet files that a folder is; empty if it is one of image files.

    Raises DataError if it may be both.
    """
    names = [*(one.name for one in files.found), *(one.name for one in files.refused)]
    mine = sorted(name for name in names if "/" not in name and name.endswith(".parquet") and not why_ignored(name))
    others = [name for name in mine if name.lower() not in SIDE_FILES]
    has_images = any(is_image(name) and not why_ignored(name) for name in names)
    if has_images and others:
        raise DataError(
            f"{source} holds the parquet file {others[0]} and image files: which of them are the data is not clear; "
            "give the parquet file itself, or take it out of the folder"
        )
    return [] if has_images else others or mine


def _list_parquet(paths: Sequence[Path], scratch: Path, layout: Layout, files: Files | None) -> Listing:
    if layout.texts:
        raise ConfigError(
            f"--texts takes texts from files beside the images, and {paths[0].name} is a parquet file; write them to "
            "files, NAME.jpg and NAME.txt, or pack it without --texts"
        )
    require("pyarrow", f"the parquet file {paths[0].name}", "parquet")
    from .parquet import list_parquet

    return list_parquet(paths, scratch, layout, files)


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
                sizes.append(len(config.recode(original.name, reader.read(original)).data))
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
        "orientation": config.recode.orientation,
        "background": config.recode.background,
        "min_size": config.recode.min_size,
        "pillow": PIL.__version__,  # another one may decode and encode to other bytes
    }
