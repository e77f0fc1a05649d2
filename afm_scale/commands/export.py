"""Publishes what a run has made: its average as safetensors, how it is built, and a page about it with a picture.

    python -m afm_scale export runs/digits digits_model
    python -m afm_scale sample digits_model --out pictures --num 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.screen import say
from ..run.arguments import name_or_path
from ..run.converting import CASTS
from ..run.exporting import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="RUN|CKPT", help="a run's folder for its newest checkpoint, or a checkpoint")
    add("out", type=Path, metavar="OUT", help="a new folder")
    add("--dtype", choices=CASTS, help="of all floats; default: as they are")
    add("--vae", type=name_or_path, metavar="FOLDER", help="decodes latents for the picture; without, false colour")


def run(options: argparse.Namespace) -> int:
    written = export(options.source, options.out, dtype=options.dtype, vae=options.vae)
    say(f"{options.out}: {', '.join(written)}")
    return 0
