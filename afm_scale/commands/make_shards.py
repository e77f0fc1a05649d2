"""Packs images into WebDataset shards: every image is decoded and checked, cropped, shuffled once.

Run the same command again after a kill: it goes on, and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path

from ..core.ranges import LARGEST_WHOLE, Range
from ..core.screen import say
from ..data.description import DatasetDescription
from ..packing.classes import Layout, read_classes
from ..packing.recode import Recode
from ..packing.shards import DEFAULT_SHARD_MB, MakeShardsConfig, make_shards
from ..run.arguments import add_number

_MOST_ROWS, _LAST_ROWS = 40, 10  # of the table of classes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE",
        help="a folder of class folders, a tar or zip of one, a parquet file, or a folder of parquet files")
    add("out", type=Path, metavar="OUT", help="the folder to make")
    add_number(parser, "--size", int, Range(1, 65_536), default=256,
        help="pixels of a side after the ADM crop (default 256)")
    add("--raw", action="store_true", help="keep the original bytes, uncropped; --size has no effect")
    add_number(parser, "--jpeg-quality", int, Range(1, 100), metavar="Q",
        help="store JPEG 4:4:4 of this quality, not PNG")
    add_number(parser, "--shards", int, Range(1, 1_000_000), metavar="N", help="how many shards")
    add_number(parser, "--shard-mb", float, Range(above=0, high=1e9), metavar="M",
        help=f"about how many megabytes of a shard (default {DEFAULT_SHARD_MB})")
    add_number(parser, "--workers", int, Range(1, 1_024), default=len(os.sched_getaffinity(0)), metavar="W",
        help="processes that decode (default: one for each core)")
    add_number(parser, "--seed", int, Range(0, LARGEST_WHOLE), default=0, help="of the one shuffle (default 0)")
    add("--convert", action="store_true",
        help="accept CMYK images, which become RGB, and images of another format than their names say")
    add("--orientation", choices=("apply", "ignore"), default="apply",
        help="turn images upright as their EXIF data say (default), or leave them as stored, as ADM does")
    add("--background", default="white", metavar="COLOUR",
        help="behind transparent pixels: a name or #rrggbb (default white)")
    add_number(parser, "--min-size", int, Range(1, 65_536), default=1, metavar="N",
        help="leave out images whose shorter side has fewer pixels (default 1: none)")
    add("--grey", action="store_true", help="store one channel; colours become grey")
    add("--within", metavar="FOLDER",
        help="pack this folder of the source alone, or this split of its parquet files (train, say)")
    add("--classes", type=Path, metavar="FILE",
        help="the class folders in the order of their numbers, one a line; or a packed data set, to have its numbers")
    add("--texts", action="store_true",
        help="of images without classes: pack the text that lies beside each, NAME.txt beside NAME.jpg, with it")


def run(options: argparse.Namespace) -> int:
    recode = Recode(
        size=options.size, raw=options.raw, jpeg_quality=options.jpeg_quality, convert=options.convert,
        orientation=options.orientation, background=options.background, min_size=options.min_size, grey=options.grey,
    )
    classes = None if options.classes is None else read_classes(options.classes)
    config = MakeShardsConfig(
        source=options.source, out=options.out, recode=recode, num_shards=options.shards, shard_mb=options.shard_mb,
        workers=options.workers, seed=options.seed,
        layout=Layout(within=options.within, classes=classes, texts=options.texts),
    )
    say(summary(config, make_shards(config)))
    return 0


def summary(config: MakeShardsConfig, done: DatasetDescription) -> str:
    """What was packed, the numbers of the classes, what was changed, and what was left out and why."""
    lines = [
        f"{done.num_samples:,} samples of {done.num_classes:,} classes in {len(done.shards)} shard(s), "
        f"{sum(shard.num_bytes for shard in done.shards) / 1e6:,.1f} MB",
        *_table(done),
    ]
    account = done.account
    if account is not None:
        lines += [f"note: {note}" for note in account.notes]
        lines.append(
            f"of {account.found:,} files {account.packed:,} were packed, {account.changed:,} of them changed, and "
            f"{account.left_out:,} left out"
        )
        lines += [f"{change.count:8,}  {change.how}" for change in account.changes]
    if done.refused:
        lines.append(f"{len(done.refused):,} refused (listed in dataset.json):")
        kinds = Counter(one.reason.partition(":")[0] for one in done.refused)
        lines += [f"{count:8,}  {kind}" for kind, count in kinds.most_common()]
    lines.append(f"described in {config.out / 'dataset.json'}")
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def _table(done: DatasetDescription) -> list[str]:
    """Number, samples and name of every class; of many the first and the last, which show a shift as well."""
    rows = [
        f"{number:8,}  {name}  ({count:,})"
        for number, (name, count) in enumerate(zip(done.class_names, done.class_counts, strict=True))
    ]
    if len(rows) > _MOST_ROWS:
        left = len(rows) - _MOST_ROWS
        rows[_MOST_ROWS - _LAST_ROWS:-_LAST_ROWS] = [f"          {left:,} more, all of them in dataset.json"]
    return ["class numbers:", *rows]
