"""Converts a checkpoint from one format to another, a tensor at a time; nothing in a file is ever run.

    python -m afm_scale convert_checkpoint --from auto --to safetensors runs/digits digits_average --part average
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint.formats.format import Told, Wanted
from ..checkpoint.formats.table import FORMATS
from ..core.ranges import LARGEST_WHOLE, Range
from ..core.screen import note, say
from ..run.arguments import add_number
from ..run.converting import CASTS, PARTS, Conversion, convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="a file, a folder, or a run's folder for its newest checkpoint")
    add("out", type=Path, metavar="OUT", help="a new file or folder, as the format has it")
    add("--from", dest="source_format", choices=("auto", *FORMATS), default="auto", help="default: what it looks like")
    add("--to", dest="out_format", choices=tuple(FORMATS), required=True)
    add("--part", choices=PARTS, help="default: all; of formats that hold one network, the average")
    add("--dtype", choices=CASTS, help="of all floats; default: as they are")
    add("--verify", action=argparse.BooleanOptionalAction, default=None,
        help="run the same inputs through both sides (default: for less than 1 GB)")
    told = parser.add_argument_group("what a file does not say itself")
    add_number(told, "--heads", int, Range(1, 65_536), metavar="N", help="of attention")
    add_number(told, "--repetitions", int, Range(1, 1_000), metavar="N", help="of a deep generator's blocks: 2, 4")
    add_number(told, "--num-steps", int, Range(1, 100_000), metavar="N", help="network evaluations of one sample")
    told.add_argument("--prediction", choices=("x", "v"), help="what a generator's output is")
    told.add_argument("--learn-sigma", action=argparse.BooleanOptionalAction, default=None,
        help="whether half of the output channels are a variance")
    wanted = parser.add_argument_group("how to write")
    add_number(wanted, "--ranks", int, Range(1, 65_536), default=1, metavar="N", help="files that tensors are cut into")
    add_number(wanted, "--stage", int, Range(0, 3), default=2, metavar="N", help="of ZeRO; 0: universal")
    add_number(wanted, "--shard-bytes", int, Range(1, LARGEST_WHOLE), default=5 * 10**9, metavar="N",
        help="largest file of safetensors; above it there are several, with an index")


def run(options: argparse.Namespace) -> int:
    asked = Conversion(
        source=options.source, source_format=options.source_format, out=options.out, out_format=options.out_format,
        part=options.part, dtype=options.dtype, verify=options.verify,
        told=Told(heads=options.heads, repetitions=options.repetitions, num_steps=options.num_steps,
                  prediction=options.prediction, learn_sigma=options.learn_sigma),
        wanted=Wanted(ranks=options.ranks, stage=options.stage, shard_bytes=options.shard_bytes),
    )
    done = convert(asked)
    for line in done.notes:
        note(line)
    say(f"{asked.source} ({done.source_format}) -> {asked.out} ({asked.out_format}): {done.num_tensors} tensors, "
        f"{done.num_bytes:,} bytes")
    for group, difference in (done.differences or {}).items():
        say(f"verified {group}: largest difference {difference:g} over the same fixed inputs")
    return 0
