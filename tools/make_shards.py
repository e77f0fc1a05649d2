"""Packs images into checked shards: python tools/make_shards.py SOURCE OUT [--size 256] [--shards N | --shard-mb M]"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.core.errors import RunError
from afm_scale.packing.recode import Recode
from afm_scale.packing.shards import DEFAULT_SHARD_MB, MakeShardsConfig, make_shards, summary


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Packs images into WebDataset shards: every image is decoded and checked, cropped, shuffled once. "
        "Run the same command again after a kill: it goes on, and ends with the same bytes."
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder of class folders, a tar or zip of one, "
                        "a parquet file, or a folder of parquet files")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side after the ADM crop (default 256)")
    parser.add_argument("--raw", action="store_true", help="keep the original bytes, uncropped; --size has no effect")
    parser.add_argument("--jpeg-quality", type=int, metavar="Q", help="store JPEG 4:4:4 of this quality, not PNG")
    parser.add_argument("--shards", type=int, metavar="N", help="how many shards")
    parser.add_argument("--shard-mb", type=float, metavar="M",
                        help=f"about how many megabytes a shard has (default {DEFAULT_SHARD_MB})")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="W",
                        help="processes that decode (default: one for each core)")
    parser.add_argument("--seed", type=int, default=0, help="of the one shuffle (default 0)")
    parser.add_argument("--convert", action="store_true", help="accept CMYK images, which become RGB, and images of "
                        "another format than their names say")
    arguments = parser.parse_args()
    try:
        recode = Recode(
            size=arguments.size, raw=arguments.raw, jpeg_quality=arguments.jpeg_quality, convert=arguments.convert
        )
        config = MakeShardsConfig(
            source=arguments.source, out=arguments.out, recode=recode, num_shards=arguments.shards,
            shard_mb=arguments.shard_mb, workers=arguments.workers, seed=arguments.seed,
        )
        print(summary(config, make_shards(config)))
    except RunError as error:
        print(str(error).encode(errors="backslashreplace").decode(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
